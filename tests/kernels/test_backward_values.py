"""The backward kernels against autograd of the reference: every gradient, every kind of window, shape and layout."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor
from window_cases import EPS, GEOMETRY, NAMES, arguments

from adaptive_window.kernels import reference
from adaptive_window.kernels.validation import RESTORE

pytest.importorskip("triton")
from interpreter_bf16 import corrected_arithmetic
from triton_calls import tonality_blend_backward, windowed_tonality_backward  # needs triton

from adaptive_window.kernels.triton.configurations import APART, TABLE, Row, Target
from adaptive_window.kernels.triton.launch import record_launches, use_target

EVERYTHING = (True,) * 10


def truth(values: Sequence[Tensor], grad_out: Tensor, window: int, restore: str = "none") -> tuple[Tensor, ...]:
    leaves = [v.detach().double().requires_grad_() for v in values]
    return torch.autograd.grad(reference.windowed_tonality(*leaves, window, EPS, restore), leaves, grad_out.double())


def assert_close(got: Sequence[Tensor | None], wanted: Sequence[Tensor], tolerance: float = 1e-10) -> None:
    # a gradient that vanishes exactly (C = 1: LayerNorm of one channel) is compared with the size of the others
    floor = 1e-3 * max(float(w.abs().max()) for w in wanted)
    for name, g, w in zip(NAMES[-len(wanted) :], got, wanted, strict=True):
        assert g is not None
        assert g.shape == w.shape, name
        assert float((g - w).abs().max()) <= tolerance * max(float(w.abs().max()), floor), name


def random_grad(values: Sequence[Tensor], window: int) -> Tensor:
    batch, channels, _ = values[0].shape
    return torch.randn(batch, values[1].shape[1], channels, window, dtype=values[0].dtype, device=values[0].device)


@pytest.mark.parametrize("case", GEOMETRY)
def test_windows_of_every_kind(case: str, device: torch.device) -> None:
    frames, window, starts, ratios = GEOMETRY[case]
    values = [v.to(device) for v in arguments(frames, starts, ratios, channels=3, taps=7)]
    grad_out = random_grad(values, window)
    for restore in RESTORE:
        got = windowed_tonality_backward(grad_out, values, EPS, EVERYTHING, restore)
        assert_close(got, truth(values, grad_out, window, restore))


# W = 131, 132: two tiles of frames in each kernel, the second nearly empty; multiples of 4 go through other kernels
SHAPES = [(1, 7, 131), (16, 3, 131), (24, 1, 40), (48, 7, 64), (128, 7, 131), (160, 7, 67), (4, 31, 131), (3, 131, 150)]
SHAPES += [(1, 7, 132), (70, 3, 132), (128, 1, 132)]


@pytest.mark.parametrize(("channels", "taps", "window"), SHAPES)
def test_shapes(channels: int, taps: int, window: int, device: torch.device) -> None:
    values = arguments(window + 31, (3.3137, -4.2931), (1.1172, 0.8172), channels, taps)
    values = [v[:1] if n < 4 else v for n, v in enumerate(values)]
    values = [v.to(device) for v in values]
    grad_out = random_grad(values, window)
    for restore in RESTORE if channels in (1, 24, 70, 160) else ("none",):
        got = windowed_tonality_backward(grad_out, values, EPS, EVERYTHING, restore)
        assert_close(got, truth(values, grad_out, window, restore))


@pytest.mark.parametrize(("channels", "taps", "window"), [(3, 7, 131), (3, 7, 132), (160, 3, 40)])
@pytest.mark.parametrize("restore", RESTORE)
def test_blend_alone(channels: int, taps: int, window: int, restore: str, device: torch.device) -> None:
    rest = arguments(window, (0.0, 0.0), (1.0, 1.0), channels, taps)[3:]
    rest = [v.to(device) for v in rest]
    y = torch.randn(2, channels, 2, 2 * window, dtype=torch.float64, device=device).transpose(1, 2)[..., ::2]
    leaves = [v.clone().requires_grad_() for v in (y, *rest)]
    out = reference.tonality_blend(*leaves, EPS, restore)
    grad_out = torch.randn_like(out)
    wanted = torch.autograd.grad(out, leaves, grad_out)
    got = tonality_blend_backward(grad_out, [y, *rest], EPS, (True,) * 8, restore)
    assert_close(got, wanted)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "sliced": lambda x: torch.stack((x, -x), -1).flatten(2)[:, :, ::2],
    "channels reversed in memory": lambda x: torch.cat((x, x), 1)[:, x.shape[1] :],
    "one clip for all": lambda x: x[:1].expand(2, -1, -1),
    "one channel for all": lambda x: x[:, :1].expand(-1, 3, -1),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str, device: torch.device) -> None:
    frames, window, starts, ratios = GEOMETRY["inside"]
    x, start, ratio, strength, *weights = [v.to(device) for v in arguments(frames, starts, ratios, 3, 3)]
    strided = torch.stack((start, ratio, strength), -1)  # none of the three is contiguous
    values = [LAYOUTS[layout](x), *strided.unbind(-1), *weights]
    grad_out = random_grad(values, 1).expand(-1, -1, -1, window)
    got = windowed_tonality_backward(grad_out, values, EPS, EVERYTHING)
    assert_close(got, truth(values, grad_out, window))


def test_nothing_to_do(device: torch.device) -> None:
    """No clips, or no windows of them: gradients are zeros of the right shape."""
    values = [v.to(device) for v in arguments(9, (1.0,), (1.0,), 3, 3)]
    for batch, pairs in ((0, 1), (2, 0)):
        some = [values[0][:batch], *(v[:batch, :pairs] for v in values[1:4]), *values[4:]]
        got = windowed_tonality_backward(random_grad(some, 5), some, EPS, EVERYTHING)
        for g, v in zip(got, some, strict=True):
            assert g is not None
            assert g.shape == v.shape
            assert not g.any()


@pytest.mark.parametrize(
    ("frames", "channels", "restore", "window"),
    [(97, 16, "none", 41), (97, 16, "none", 40), (97, 16, "frame", 41), (200_000, 4, "none", 41)],
)
def test_float32_is_as_good_as_pytorch(
    frames: int, channels: int, restore: str, window: int, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Error against float64 truth at most twice that of PyTorch with the same dtype everywhere, positions included; and
    on a GPU, where float32 products are three of bfloat16, what these leave out, as `test_float32_without_tf32` has it.

    At 200,000 frames a float32 position is off by up to 1/128 of a frame. Starts and ratios keep every frame away from
    whole positions, where the slope jumps and no float32 arithmetic can tell the side.
    """
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    products = 0.0 if device.type == "cpu" else 2 * 3 * 2.0**-18
    values = arguments(frames, (3.3137, frames - 68.2183, frames - 70.8391), (1.0178, 1.3217, 1.4987), channels, 7)
    values = [v.float().to(device) for v in values]
    grad_out = random_grad(values, window)
    wanted = truth(values, grad_out, window, restore)
    monkeypatch.setattr(reference, "_position_dtype", lambda x: torch.float32)
    leaves = [v.clone().requires_grad_() for v in values]
    theirs = torch.autograd.grad(reference.windowed_tonality(*leaves, window, EPS, restore), leaves, grad_out)
    needs = (frames < 1000, *EVERYTHING[1:])  # 200,000 samples of dx take the interpreter minutes
    got = windowed_tonality_backward(grad_out, values, EPS, needs, restore)
    for name, g, t, w in zip(NAMES, got, theirs, wanted, strict=True):
        if g is not None:
            assert g.dtype == torch.float32
            # where PyTorch happens to round hardly at all (sums of a few numbers), one rounding is allowed
            allowed = 2 * float((t - w).norm()) + (2.0**-24 + products) * float(w.norm())
            assert float((g - w).norm()) <= allowed, name


@pytest.mark.parametrize("restore", RESTORE)
def test_bfloat16_is_as_good_as_pytorch(restore: str, device: torch.device) -> None:
    """With gradients in bfloat16 between the kernels, as PyTorch has them between its operations.

    start and ratio, which are never computed in 16 bits, are given in float32.
    """
    window = 41
    values = [v.float() for v in arguments(97, (3.3137, 20.2183), (1.0178, 1.3217), 16, 7)]
    values = [v.to(device) if n in (1, 2) else v.to(torch.bfloat16).to(device) for n, v in enumerate(values)]
    grad_out = random_grad(values, window)
    wanted = truth(values, grad_out, window, restore)
    leaves = [v.clone().requires_grad_() for v in values]
    theirs = torch.autograd.grad(reference.windowed_tonality(*leaves, window, EPS, restore), leaves, grad_out)
    with record_launches() as launches:
        if device.type == "cpu":
            with use_target(Target(90, 2, "bf16")), corrected_arithmetic():
                got = windowed_tonality_backward(grad_out, values, EPS, EVERYTHING, restore)
        else:
            got = windowed_tonality_backward(grad_out, values, EPS, EVERYTHING, restore)
    passed = {name: one.arguments[name] for one in launches for name in ("dz_ptr", "dy_ptr") if name in one.arguments}
    assert {value.dtype for value in passed.values()} == {torch.bfloat16}
    for name, g, t, w in zip(NAMES, got, theirs, wanted, strict=True):
        assert g is not None
        # a product's operand, dz and dy or the result are rounded; PyTorch's own error, should that be larger
        allowed = max(2 * float((t - w).norm()), 3 * 2.0**-9 * float(w.norm()))
        assert float((g.double() - w).norm()) <= allowed, name


@pytest.mark.parametrize("restore", RESTORE)
def test_one_kernel_gives_what_two_give(restore: str, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """In bfloat16, whose operands both round alike: equal but for single roundings that fall the other way."""
    values = [v.float() for v in arguments(97, (3.3137, 20.2183), (1.0178, 1.3217), 16, 7)]
    values = [v.to(device) if n in (1, 2) else v.to(torch.bfloat16).to(device) for n, v in enumerate(values)]
    grad_out = random_grad(values, 40)
    found = []
    for table in (TABLE["joint_backward"], (Row(APART),)):
        monkeypatch.setitem(TABLE, "joint_backward", table)
        with record_launches() as launches:
            if device.type == "cpu":
                with use_target(Target(90, 2, "bf16")), corrected_arithmetic():
                    found.append(windowed_tonality_backward(grad_out, values, EPS, EVERYTHING, restore))
            else:
                found.append(windowed_tonality_backward(grad_out, values, EPS, EVERYTHING, restore))
        assert ("joint_backward" in {one.name for one in launches}) == (len(found) == 1)
    for name, one, two in zip(NAMES, *found, strict=True):
        assert one is not None
        assert two is not None
        assert float((one - two).double().norm()) <= 2.0**-9 * float(two.double().norm()), name
