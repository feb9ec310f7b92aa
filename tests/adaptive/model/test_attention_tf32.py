"""Attention in float16 where TF32 is allowed: as exact as TF32 products, whatever the gradients' size.

PyTorch's flash kernels run on CUDA alone; here their products stand in for them, with operands and results rounded as
theirs are. On a GPU the kernels themselves are measured.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from adaptive_window.model import attention as attention_module
from adaptive_window.model import attention_tf32
from adaptive_window.model.attention import attention

SCALE = 64**-0.5


def attended(q: Tensor, k: Tensor, v: Tensor, rounded: Any) -> tuple[Tensor, Tensor]:
    """Output and softmax in float32, operands of products rounded by `rounded`."""
    weights = (rounded(q) @ rounded(k).transpose(-2, -1) * SCALE).softmax(-1)
    return rounded(weights) @ rounded(v), weights


def derived(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, weights: Tensor, rounded: Any) -> list[Tensor]:
    """Gradients for q, k and v, operands rounded likewise; the formulas stand in `attention`."""
    by_weights = rounded(grad) @ rounded(v).transpose(-2, -1)
    by_scores = weights * (by_weights - (grad * out).sum(-1, keepdim=True)) * SCALE
    return [
        rounded(by_scores) @ rounded(k),
        rounded(by_scores).transpose(-2, -1) @ rounded(q),
        rounded(weights).transpose(-2, -1) @ rounded(grad),
    ]


def ten_bits(x: Tensor) -> Tensor:
    """float32 rounded to TF32's mantissa, half to even left aside."""
    return ((x.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


def half(x: Tensor) -> Tensor:
    return x.half().float()


class Flash:
    """In the place of `torch.ops.aten`: what the flash kernels compute, on a CPU."""

    def __init__(self) -> None:
        self.dropouts: list[float] = []
        self.largest: list[float] = []

    def _scaled_dot_product_flash_attention(self, q: Tensor, k: Tensor, v: Tensor, dropout: float, *_: bool) -> Any:
        assert {t.dtype for t in (q, k, v)} == {torch.float16}
        self.dropouts.append(dropout)
        out, weights = attended(q.float(), k.float(), v.float(), half)
        return out.half(), weights, None, None, q.shape[2], k.shape[2], torch.tensor(1), torch.tensor(2), None

    def _scaled_dot_product_flash_attention_backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, weights: Tensor, *rest: Any
    ) -> list[Tensor]:
        assert grad.dtype == torch.float16
        assert rest[2:4] == (q.shape[2], k.shape[2])
        assert [int(t) for t in rest[6:8]] == [1, 2]  # seed and offset
        self.dropouts.append(rest[4])
        self.largest.append(float(grad.abs().max()))
        tensors = (grad, q, k, v, out)
        return [g.half() for g in derived(*(t.float() for t in tensors), weights, half)]


@pytest.fixture
def flash(monkeypatch: pytest.MonkeyPatch) -> Flash:
    stub = Flash()
    monkeypatch.setattr(attention_tf32, "aten", stub)
    monkeypatch.setattr(attention_module, "takes", lambda q: True)
    return stub


def values(seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 3, 80, 64, generator=generator).requires_grad_() for _ in range(3)]


def run(tensors: list[Tensor], grad: Tensor, dropout: float = 0.0) -> list[Tensor]:
    out = attention(*tensors, dropout)
    return [out.detach(), *torch.autograd.grad(out, tensors, grad)]


@pytest.mark.parametrize("size", [1.0, 1e-9, 1e6])
def test_as_exact_as_tf32(flash: Flash, size: float) -> None:
    """Error against float64 at most twice that of the same products in TF32, for gradients of any size."""
    tensors = values()
    grad = size * torch.randn(2, 3, 80, 64, generator=torch.Generator().manual_seed(9))
    grad[1, 2] *= 1e-6  # a window and head of its own size
    wide = [t.detach().double().requires_grad_() for t in tensors]
    out = F.scaled_dot_product_attention(*wide)
    true = [out.detach(), *torch.autograd.grad(out, wide, grad.double())]
    plain = [t.detach() for t in tensors]
    tf32, weights = attended(*plain, ten_bits)
    theirs = [tf32, *derived(grad, *plain, tf32, weights, ten_bits)]
    for name, ours, other, exact in zip(("out", "dq", "dk", "dv"), run(tensors, grad), theirs, true, strict=True):
        assert ours.dtype == torch.float32
        for where in (..., (1, 2)):
            mistake, allowed = (ours - exact)[where].norm(), 2 * (other - exact)[where].norm()
            assert 0 < mistake <= allowed, (name, where)


def test_gradients_are_linear(flash: Flash) -> None:
    """2^-40 times the gradient gives just that times the gradients: no bit is lost to float16's range."""
    tensors = values()
    grad = torch.randn(2, 3, 80, 64, generator=torch.Generator().manual_seed(9))
    large, small = run(tensors, grad), run(tensors, grad * 2.0**-40)
    for one, other in zip(large[1:], small[1:], strict=True):
        assert one.any()
        assert torch.equal(one * 2.0**-40, other)
    assert all(8 <= found < 16 for found in flash.largest)


@pytest.mark.parametrize("value", [0.0, float("inf"), float("nan")])
def test_zeros_stay_zeros_and_what_is_not_finite_is_not_hidden(flash: Flash, value: float) -> None:
    grad = torch.full((2, 3, 80, 64), value)
    for found in run(values(), grad)[1:]:
        assert not found.any() if value == 0 else not found.isfinite().all()


def test_dropout_reaches_both_directions(flash: Flash) -> None:
    run(values(), torch.ones(2, 3, 80, 64), dropout=0.25)
    assert flash.dropouts == [0.25, 0.25]


def fake(device: str = "cuda", dtype: torch.dtype = torch.float32, size: int = 64) -> Any:
    return SimpleNamespace(device=torch.device(device), dtype=dtype, shape=(2, 3, 80, size))


def test_it_is_taken_only_where_tf32_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_tf32, "_transformed", lambda q: False)
    before = torch.backends.cuda.matmul.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = False
        assert not attention_tf32.takes(fake())
        torch.backends.cuda.matmul.allow_tf32 = True
        assert attention_tf32.takes(fake())
        for other in (
            fake("cpu"),
            fake(dtype=torch.bfloat16),
            fake(dtype=torch.float64),
            fake(size=60),
            fake(size=264),
        ):
            assert not attention_tf32.takes(other)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def test_transforms_are_left_to_pytorch() -> None:
    x = torch.ones(2)
    seen = []
    torch.func.grad(lambda t: (seen.append(attention_tf32._transformed(t)), t.sum())[1])(x)
    with torch.autograd.forward_ad.dual_level():
        seen.append(attention_tf32._transformed(torch.autograd.forward_ad.make_dual(x, x)))
    assert seen == [True, True]
    assert not attention_tf32._transformed(x)


@pytest.mark.proof
def test_it_compiles_whole_to_the_flash_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    """On tensors without memory: one graph each way, PyTorch's operators with what they expect."""
    from torch._dynamo.backends.common import aot_autograd

    monkeypatch.setattr(attention_module, "takes", lambda q: True)
    called: list[list[str]] = []

    def keep(graph: Any, inputs: Any) -> Any:
        called.append([str(node.target) for node in graph.graph.nodes])
        return graph.forward

    tensors = [torch.randn(2, 4, 48, 64, device="meta", requires_grad=True) for _ in range(3)]
    step = torch.compile(
        lambda *t: attention(*t, 0.1).square().sum(), backend=aot_autograd(fw_compiler=keep), fullgraph=True
    )
    step(*tensors).backward()
    assert [t.grad.dtype for t in tensors if t.grad is not None] == 3 * [torch.float32]
    forward, backward = called
    assert "aten._scaled_dot_product_flash_attention.default" in forward
    assert "aten._scaled_dot_product_flash_attention_backward.default" in backward


@pytest.mark.skipif(not torch.cuda.is_available(), reason="runs PyTorch's flash kernels")
@pytest.mark.parametrize("size", [1.0, 1e-9])
def test_on_a_device_as_exact_as_tf32_products(size: float) -> None:
    """As `test_as_exact_as_tf32`, with the kernels themselves and products that the device makes in TF32."""
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(4, 8, 800, 64, generator=generator).cuda().requires_grad_() for _ in range(3)]
    grad = size * torch.randn(4, 8, 800, 64, generator=generator).cuda()
    wide = [t.detach().double().requires_grad_() for t in tensors]
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        results = {}
        for name, some in (("true", wide), ("theirs", tensors)):
            weights = (some[0] @ some[1].transpose(-2, -1) * SCALE).softmax(-1)
            out = weights @ some[2]
            results[name] = [out.detach(), *torch.autograd.grad(out, some, grad.to(out.dtype))]
        assert attention_tf32.takes(tensors[0])
        results["ours"] = run(tensors, grad)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    for name, ours, other, exact in zip(
        ("out", "dq", "dk", "dv"), results["ours"], results["theirs"], results["true"], strict=True
    ):
        mistake, allowed, whole = (ours - exact).norm(), 2 * (other - exact).norm(), exact.norm()
        print(f"{name}: error {float(mistake / whole):.1e}, of TF32 products {float(allowed / whole) / 2:.1e}")
        assert 0 < mistake <= allowed, name
