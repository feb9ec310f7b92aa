"""torch.autocast: the public functions on either backend, and the whole agent from end to end."""

from __future__ import annotations

import pytest
import torch
from agent_cases import CHANNELS, FRAMES, small_agent
from reference_cases import column, tonality_weights
from torch import Tensor

from adaptive_window.kernels import resample_windows, tonality_blend, windowed_tonality
from adaptive_window.kernels.backends import TRITON_INSTALLED


class TestAutocast:
    """The public functions under torch.autocast: signal and weights in its dtype, places never below float32."""

    def arguments(self, dtype: torch.dtype) -> list[Tensor]:
        x, strength = torch.randn(2, 4, 400, dtype=dtype), torch.rand(2, 2, dtype=dtype)
        start = column(300.3, 1.7, dtype=dtype).repeat(2, 1)
        return [x, start, torch.full_like(start, 1.21), strength, *tonality_weights(4, dtype=dtype)]

    def test_float32_is_cast(self) -> None:
        x, start, ratio, strength, *weights = self.arguments(torch.float32)
        low = [value.bfloat16() for value in (x, strength, *weights)]
        with torch.autocast("cpu", torch.bfloat16):
            fused = windowed_tonality(x, start, ratio, strength, *weights, 30)
            resampled = resample_windows(x, start, ratio, 30)
            blend = tonality_blend(resampled, strength, *weights)
        assert fused.dtype == resampled.dtype == blend.dtype == torch.bfloat16
        assert torch.equal(fused, windowed_tonality(low[0], start, ratio, low[1], *low[2:], 30))
        assert torch.equal(resampled, resample_windows(low[0], start, ratio, 30))
        assert torch.equal(blend, tonality_blend(resampled, low[1], *low[2:]))

    def test_gradients_come_back_in_the_arguments_dtype(self) -> None:
        arguments = [value.requires_grad_() for value in self.arguments(torch.float32)]
        with torch.autocast("cpu", torch.bfloat16):
            out = windowed_tonality(*arguments, 30)
        grads = torch.autograd.grad(out.float().square().sum(), arguments)
        assert all(g.dtype == torch.float32 and g.isfinite().all() for g in grads)

    def test_float64_and_disabled_regions_are_left_alone(self) -> None:
        double, single = self.arguments(torch.float64), self.arguments(torch.float32)
        with torch.autocast("cpu", torch.bfloat16):
            assert windowed_tonality(*double, 30).dtype == torch.float64
            with torch.autocast("cpu", enabled=False):
                assert windowed_tonality(*single, 30).dtype == torch.float32

    def test_one_graph_inside_and_outside(self) -> None:
        """torch.compile(fullgraph=True) traces the reference, with and without autocast."""
        arguments = self.arguments(torch.float32)
        compiled = torch.compile(lambda *a: windowed_tonality(*a, 30), fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(*arguments), windowed_tonality(*arguments, 30))
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(compiled(*arguments), windowed_tonality(*arguments, 30))

    def test_a_device_without_autocast(self) -> None:
        meta = [value.to("meta") for value in self.arguments(torch.float32)]
        assert windowed_tonality(*meta, 30).shape == (2, 2, 4, 30)


BACKENDS = ["reference", pytest.param("triton", marks=pytest.mark.skipif(not TRITON_INSTALLED, reason="no Triton"))]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_each_function(backend: str, dtype: torch.dtype, device: torch.device) -> None:
    """Output in autocast's dtype, within its rounding of the float32 result; gradients in float32, finite."""
    x, start, ratio, strength, *weights = (v.to(device) for v in TestAutocast().arguments(torch.float32))
    calls = {
        "resample": (lambda *a: resample_windows(*a, 30, backend=backend), [x, start, ratio]),
        "blend": (
            lambda *a: tonality_blend(*a, backend=backend),
            [resample_windows(x, start, ratio, 30), strength, *weights],
        ),
        "fused": (lambda *a: windowed_tonality(*a, 30, backend=backend), [x, start, ratio, strength, *weights]),
    }
    for name, (function, given) in calls.items():
        leaves = [v.clone().requires_grad_() for v in given]
        with torch.autocast(device.type, dtype):
            out = function(*leaves)
        assert out.dtype == dtype, name
        wanted = function(*leaves)
        # signal, three weights, the normalization's gain and shift, and the result: rounded once each
        bound = 7 * torch.finfo(dtype).eps / 2
        assert float((out - wanted).detach().norm()) <= bound * float(wanted.detach().norm()), name
        grads = torch.autograd.grad(out.float().sum(), leaves)
        assert all(g.dtype == torch.float32 and g.isfinite().all() for g in grads), name


@pytest.mark.parametrize("backend", BACKENDS)
def test_whole_agent(backend: str, device: torch.device) -> None:
    """A training step under autocast: the windows are float32's to the bit, the output near, every gradient float32."""
    x, y = torch.randn(2, 2, CHANNELS, FRAMES, device=device).unbind(0)
    wanted, _, metadata = small_agent(backend, device)(x, y)
    agent = small_agent(backend, device)
    with torch.autocast(device.type, torch.bfloat16):
        outputs, losses, under = agent(x, y)
    for name, value in metadata["windows"].items():
        assert torch.equal(under["windows"][name], value), name
    got, true = outputs[0].detach(), wanted[0].detach()
    assert float((got - true).norm()) <= 20 * 2.0**-9 * float(true.norm())  # some 20 roundings in a row
    (torch.stack(outputs).float().square().mean() + torch.stack(losses).float().mean()).backward()
    grads = {name: p.grad for name, p in agent.named_parameters() if p.grad is not None}
    assert any(name.startswith("window_selector.mlp.0") for name in grads)
    assert all(g.dtype == torch.float32 and g.isfinite().all() for g in grads.values())
    assert float(grads["window_selector.mlp.8.weight"].abs().max()) > 0
