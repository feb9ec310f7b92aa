"""Every wrong argument of the public functions: the exception, and a message with argument, value and expectation."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from adaptive_window.kernels import resample_windows, tonality_blend, windowed_tonality

B, P, C, T, W, K = 2, 3, 4, 20, 6, 5
WEIGHTS = {
    "depthwise_weight": (C, 1, K),
    "depthwise_bias": (C,),
    "pointwise_weight": (C, C, 1),
    "pointwise_bias": (C,),
    "norm_weight": (C,),
    "norm_bias": (C,),
}
SHAPES = {"x": (B, C, T), "y": (B, P, C, W), "start": (B, P), "ratio": (B, P), "strength": (B, P), **WEIGHTS}
TENSORS = {
    resample_windows: ("x", "start", "ratio"),
    tonality_blend: ("y", "strength", *WEIGHTS),
    windowed_tonality: ("x", "start", "ratio", "strength", *WEIGHTS),
}
DTYPES = {torch.float64: "float64", torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


def good(function: Callable[..., Tensor], dtype: torch.dtype = torch.float32) -> dict[str, object]:
    arguments: dict[str, object] = {name: torch.ones(SHAPES[name], dtype=dtype) for name in TENSORS[function]}
    if function is not tonality_blend:
        arguments["window"] = W
    return arguments


def refused(
    function: Callable[..., Tensor], error: type[Exception], fragments: list[str], dtype: torch.dtype, **changes: object
) -> None:
    arguments = good(function, dtype) | changes
    with pytest.raises(error) as caught:
        function(**arguments)
    message = str(caught.value)
    missing = [fragment for fragment in fragments if fragment not in message]
    assert not missing, f"{message!r} does not say {missing}"


def each_tensor() -> list[tuple[Callable[..., Tensor], str]]:
    return [(function, name) for function, names in TENSORS.items() for name in names]


@pytest.mark.parametrize("function", TENSORS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_good_arguments_pass(function: Callable[..., Tensor], dtype: torch.dtype) -> None:
    out = function(**good(function, dtype))
    assert out.shape == (B, P, C, W)
    assert out.dtype == dtype


@pytest.mark.parametrize(("function", "name"), each_tensor())
class TestEveryTensor:
    def shape_text(self, name: str) -> str:
        letters = {"x": "B, C, T", "y": "B, P, C, W", "depthwise_weight": "C, 1, K", "pointwise_weight": "C, C, 1"}
        return letters.get(name, "C" if name in WEIGHTS else "B, P")

    @pytest.mark.parametrize("value", [None, 1.0, [1.0], "x"])
    def test_no_tensor(self, function: Callable[..., Tensor], name: str, value: object) -> None:
        said = [name, "torch.Tensor", f"[{self.shape_text(name)}]", type(value).__name__]
        refused(function, TypeError, said, torch.float32, **{name: value})

    @pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
    def test_not_floating(self, function: Callable[..., Tensor], name: str, dtype: torch.dtype) -> None:
        value = torch.ones(SHAPES[name], dtype=dtype)
        said = [name, "floating", str(dtype).removeprefix("torch.")]
        refused(function, TypeError, said, torch.float32, **{name: value})

    def test_sparse(self, function: Callable[..., Tensor], name: str) -> None:
        value = torch.ones(SHAPES[name]).to_sparse()
        refused(function, TypeError, [name, "dense", "torch.sparse_coo"], torch.float32, **{name: value})

    def test_one_dimension_more_or_less(self, function: Callable[..., Tensor], name: str) -> None:
        for value in (torch.ones(*SHAPES[name], 1), torch.ones(SHAPES[name][:-1])):
            said = [name, f"[{self.shape_text(name)}]", str(list(value.shape))]
            refused(function, ValueError, said, torch.float32, **{name: value})

    def test_another_dtype(self, function: Callable[..., Tensor], name: str) -> None:
        if name in ("x", "y"):
            return  # the others are compared with it, and named
        value = torch.ones(SHAPES[name], dtype=torch.float64)
        refused(function, TypeError, [name, "float32", "float64"], torch.float32, **{name: value})
        value = torch.ones(SHAPES[name], dtype=torch.bfloat16)
        refused(function, TypeError, [name, "float16", "bfloat16"], torch.float16, **{name: value})

    def test_another_device(self, function: Callable[..., Tensor], name: str) -> None:
        if name in ("x", "y"):
            return  # as above
        value = torch.ones(SHAPES[name], device="meta")
        refused(function, ValueError, [name, "device", "cpu", "meta"], torch.float32, **{name: value})

    def test_another_shape(self, function: Callable[..., Tensor], name: str) -> None:
        """One size off by one, in every place where another argument fixes it."""
        free = {"x": (0, 1, 2), "y": (0, 1, 2, 3), "start": (1,), "depthwise_weight": (2,)}.get(name, ())
        if function is resample_windows or name == "start":
            free += (1,)  # P is whatever start says
        if name == "ratio":
            free = ()
        for place, size in enumerate(SHAPES[name]):
            if place in free:
                continue
            shape = list(SHAPES[name])
            shape[place] = size + 1
            refused(function, ValueError, [name, str(shape)], torch.float32, **{name: torch.ones(shape)})


@pytest.mark.parametrize("function", [resample_windows, windowed_tonality])
class TestPlaces:
    def test_wide_places_with_sixteen_bits(self, function: Callable[..., Tensor]) -> None:
        for dtype in (torch.bfloat16, torch.float16):
            for wide in (torch.float32, torch.float64):
                changes = {name: torch.ones(B, P, dtype=wide) for name in ("start", "ratio")}
                assert function(**good(function, dtype) | changes).dtype == dtype

    def test_places_of_the_other_sixteen_bits(self, function: Callable[..., Tensor]) -> None:
        value = torch.ones(B, P, dtype=torch.float16)
        refused(function, TypeError, ["start", "bfloat16", "float32 or wider", "float16"], torch.bfloat16, start=value)

    def test_empty_clip(self, function: Callable[..., Tensor]) -> None:
        refused(function, ValueError, ["x", "T >= 1", "[2, 4, 0]"], torch.float32, x=torch.ones(B, C, 0))
        refused(function, ValueError, ["x", "C >= 1", "[2, 0, 20]"], torch.float32, x=torch.ones(B, 0, T))

    @pytest.mark.parametrize("window", [None, 6.0, "6", True, torch.tensor(6)])
    def test_window_no_int(self, function: Callable[..., Tensor], window: object) -> None:
        refused(function, TypeError, ["window", "int", type(window).__name__], torch.float32, window=window)

    @pytest.mark.parametrize("window", [0, -3])
    def test_window_too_short(self, function: Callable[..., Tensor], window: int) -> None:
        refused(function, ValueError, ["window", "at least 1", str(window)], torch.float32, window=window)


@pytest.mark.parametrize("function", [tonality_blend, windowed_tonality])
class TestTonality:
    @pytest.mark.parametrize("taps", [2, 4, 0])
    def test_even_taps(self, function: Callable[..., Tensor], taps: int) -> None:
        value = torch.ones(C, 1, taps)
        said = ["depthwise_weight", "odd", f"K = {taps}"]
        refused(function, ValueError, said, torch.float32, depthwise_weight=value)

    @pytest.mark.parametrize("eps", [None, "1e-5", True, torch.tensor(1e-5)])
    def test_eps_no_number(self, function: Callable[..., Tensor], eps: object) -> None:
        refused(function, TypeError, ["eps", "number", type(eps).__name__], torch.float32, eps=eps)

    @pytest.mark.parametrize("eps", [0, -1e-5, float("inf"), float("nan")])
    def test_eps_not_positive(self, function: Callable[..., Tensor], eps: float) -> None:
        refused(function, ValueError, ["eps", "positive", str(eps)], torch.float32, eps=eps)

    @pytest.mark.parametrize("restore", [None, True, ["frame"]])
    def test_restore_no_string(self, function: Callable[..., Tensor], restore: object) -> None:
        said = ["restore", "'none'", "'frame'", type(restore).__name__]
        refused(function, TypeError, said, torch.float32, restore=restore)

    @pytest.mark.parametrize("restore", ["", "Frame", "window"])
    def test_unknown_restore(self, function: Callable[..., Tensor], restore: str) -> None:
        refused(function, ValueError, ["restore", "'none'", "'frame'", repr(restore)], torch.float32, restore=restore)


def test_empty_windows() -> None:
    for place, letter in ((2, "C"), (3, "W")):
        shape = [B, P, C, W]
        shape[place] = 0
        refused(tonality_blend, ValueError, ["y", f"{letter} >= 1", str(shape)], torch.float32, y=torch.ones(shape))


@pytest.mark.parametrize("function", TENSORS)
class TestBackend:
    @pytest.mark.parametrize("backend", [None, 3, ("auto",)])
    def test_no_string(self, function: Callable[..., Tensor], backend: object) -> None:
        said = ["backend", "'auto'", "'triton'", "'reference'", type(backend).__name__]
        refused(function, TypeError, said, torch.float32, backend=backend)

    @pytest.mark.parametrize("backend", ["cuda", "Triton", ""])
    def test_unknown_name(self, function: Callable[..., Tensor], backend: str) -> None:
        said = ["backend", "'auto'", "'triton'", "'reference'", repr(backend)]
        refused(function, ValueError, said, torch.float32, backend=backend)

    def test_named_backend_never_falls_back(
        self, function: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("adaptive_window.kernels.backends.INTERPRETED", False)
        arguments = good(function) | {"backend": "triton"}
        with pytest.raises(RuntimeError, match=r"backend='triton' cannot run: .*CUDA device.*TRITON_INTERPRET=1"):
            function(**arguments)


def test_no_clips_and_no_windows_are_legal() -> None:
    assert resample_windows(torch.ones(0, C, T), torch.ones(0, P), torch.ones(0, P), W).shape == (0, P, C, W)
    assert resample_windows(torch.ones(B, C, T), torch.ones(B, 0), torch.ones(B, 0), W).shape == (B, 0, C, W)
