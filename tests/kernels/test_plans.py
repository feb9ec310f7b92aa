"""Planned launches: what is decided once, what is bound at each call, and what makes a plan anew."""

from __future__ import annotations

import copy
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor
from window_cases import EPS, W, arguments, small_arguments, small_calls

pytest.importorskip("triton")
from interpreter_bf16 import corrected_arithmetic
from started_kernels import STREAM, started

from adaptive_window.kernels import ops, resample_windows, windowed_tonality
from adaptive_window.kernels.ops import WINDOWED_TONALITY
from adaptive_window.kernels.triton import backend
from adaptive_window.kernels.triton.backend import Calls
from adaptive_window.kernels.triton.configurations import Target
from adaptive_window.kernels.triton.launch import use_target
from adaptive_window.kernels.triton.plan import ALIGNMENT, Plan
from adaptive_window.kernels.triton.prepare import lay_out, prepare, room
from adaptive_window.kernels.weights import Weights

pytestmark = pytest.mark.skipif(os.environ["TRITON_INTERPRET"] != "1", reason="starts kernels in the interpreter")
FUNCTIONS = small_calls("triton")


def everything(name: str, given: list[Tensor]) -> list[Tensor]:
    leaves = [v.detach().clone().requires_grad_() for v in given]
    out = FUNCTIONS[name][0](*leaves)
    return [out, *torch.autograd.grad(out.sin().sum(), leaves)]


@pytest.fixture(autouse=True)
def _new() -> None:
    ops.forget()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_addresses_say_the_same_as_tensors(name: str) -> None:
    """Twice: as planned, and as known."""
    given = FUNCTIONS[name][1]()
    wanted = everything(name, given)
    with started() as starts:
        for _ in range(2):
            got = everything(name, given)
            assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))
    assert starts
    assert {stream for _, stream in starts} == {STREAM}
    assert [n for n, _ in starts[: len(starts) // 2]] == [n for n, _ in starts[len(starts) // 2 :]]


@pytest.mark.proof
@pytest.mark.parametrize("channels", [5, 130])
def test_many_channels_too(channels: int) -> None:
    """130: steps that PyTorch does are bound as well."""
    given = [
        v[:1] if n < 4 else v for n, v in enumerate(arguments(30, (3.3137, -4.2931), (1.1172, 0.8172), channels, 3))
    ]
    wanted = everything("windowed_tonality", given)
    with started():
        for got, want in zip(everything("windowed_tonality", given), wanted, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_one_piece_of_scratch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Besides results there is one allocation, however many kernels share it; and no two parts of it overlap."""
    given = [v.requires_grad_() for v in small_arguments()]
    with started():
        out = windowed_tonality(*given, W, backend="triton")
        torch.autograd.grad(out, given, torch.ones_like(out))
        made: list[torch.dtype] = []
        empty = torch.empty
        monkeypatch.setattr(torch, "empty", lambda *a, **k: made.append(k.get("dtype")) or empty(*a, **k))
        out = windowed_tonality(*given, W, backend="triton")
        grads = torch.autograd.grad(out, given, torch.ones_like(out))
        monkeypatch.undo()
    assert made.count(torch.uint8) == 1
    storages = [g.untyped_storage().data_ptr() for g in grads]
    assert len(set(storages)) == len(grads)


def test_parts_of_scratch_do_not_overlap() -> None:
    calls = Calls(WINDOWED_TONALITY, tuple(small_arguments()), (W, EPS, "frame"))
    values = small_arguments()
    calls.backward(torch.ones(2, 2, 3, W, dtype=torch.float64), values, None, (True,) * 10)
    (plan,) = calls.plans.values()
    sizes = [base.untyped_storage().nbytes() for base in plan._bases[plan._first_scratch :]]
    ends = [at + size for at, size in zip(plan._offsets, sizes, strict=True)]
    assert len(sizes) > 5
    assert all(at % ALIGNMENT == 0 for at in plan._offsets)
    assert all(end <= at for end, at in zip(ends, [*plan._offsets[1:], plan.scratch_bytes], strict=True))


def count(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    made: list[Any] = []

    def counted(*values: Any) -> Plan:
        made.append(values)
        return Plan(*values)

    monkeypatch.setattr(backend, "Plan", counted)
    return made


def test_a_call_plans_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made, given = count(monkeypatch), small_arguments()
    for n in range(3):
        resample_windows(*(v + n for v in given[:3]), W, backend="triton")
    assert len(made) == 1


CHANGES: dict[str, Any] = {
    "sizes": lambda x: x[..., :-1].contiguous(),
    "strides": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "dtype": lambda x: x.float(),
    "alignment": lambda x: torch.cat((x.flatten()[:1], x.flatten()))[1:].view(x.shape),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_makes_a_new_plan(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = count(monkeypatch)
    x, start, ratio = small_arguments()[:3]
    with started():
        resample_windows(x, start, ratio, W, backend="triton")
        other = CHANGES[change](x)
        got = resample_windows(other, start.to(other.dtype), ratio.to(other.dtype), W, backend="triton")
        assert len(made) == 2
        resample_windows(x, start, ratio, W, backend="triton")
        assert len(made) == 2
    want = resample_windows(other, start.to(other.dtype), ratio.to(other.dtype), W, backend="reference")
    torch.testing.assert_close(got, want)


def test_what_one_signature_does_not_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients asked for, the target, PyTorch's switch for float32 products: each has a plan; back again has none."""
    made = count(monkeypatch)
    values = [v.float() for v in small_arguments()]

    def backward(asked: int) -> None:
        leaves = [v.detach().requires_grad_(n == asked) for n, v in enumerate(values)]
        out = windowed_tonality(*leaves, W, backend="triton")
        torch.autograd.grad(out, [leaves[asked]], torch.ones_like(out))

    for asked in (1, 3, 1, 3):
        backward(asked)
    assert len(made) == 3  # forward, and a backward of each
    with torch.no_grad():
        for precision in ("ieee", None, "ieee", None):
            with use_target(Target(0, 3, precision)):
                windowed_tonality(*values, W, backend="triton")
    assert len(made) == 4  # forward that keeps nothing
    before = torch.backends.cudnn.conv.fp32_precision
    taken = []
    monkeypatch.setattr(Calls, "_run", lambda self, key, *rest: taken.append(key) or [torch.empty(0)])
    try:
        for switch in ("tf32", "ieee"):
            torch.backends.cudnn.conv.fp32_precision = switch
            with use_target(Target(90, 132)), torch.no_grad():
                windowed_tonality(*values, W, backend="triton")
    finally:
        torch.backends.cudnn.conv.fp32_precision = before
    assert [key[-1] for key in taken] == ["tf32", "bf16x3"]


def test_backward_takes_the_precision_of_its_forward() -> None:
    """The switch may change between them; the prepared weights are laid out for the one that was on."""
    values = [v.float() for v in arguments(30, (3.3137,), (1.1172,), 16, 3)]
    grads = []
    for then in (("ieee", "ieee"), ("ieee", "bf16")):
        leaves = [v.clone().requires_grad_() for v in values]
        with use_target(Target(0, 3, then[0])):
            out = windowed_tonality(*leaves, W, backend="triton")
        with use_target(Target(0, 3, then[1])):
            grads.append(torch.autograd.grad(out, leaves, torch.ones_like(out)))
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize("precision", ["ieee", "tf32", "bf16x3"])
@pytest.mark.parametrize("channels", [5, 64, 70])
def test_forward_keeps_what_another_launch_would_prepare(channels: int, precision: str) -> None:
    """One of its programs does, for the backward pass: the same numbers; sums of biases in another order."""
    values = [v.float() for v in arguments(31, (3.3, 1.2), (1.1, 1.4), channels, 7)]
    weights, target = Weights(*values[4:]), Target(0, 3, precision)

    def alone(*twins: Tensor) -> list[Tensor]:
        compute, size = room(Weights(*twins), precision)
        memory = torch.empty(size, dtype=compute, device="meta")
        prepare(Weights(*twins), target, precision, lay_out(memory, Weights(*twins), precision))
        return [memory]

    with use_target(target), corrected_arithmetic():
        kept = Calls(WINDOWED_TONALITY, tuple(values), (W, EPS, None)).forward(values, True)[1]
        (made,) = Plan(alone, list(weights)).interpret(list(weights))
    assert kept is not None
    assert made is not None
    mine, others = (lay_out(memory, weights, precision) for memory in (kept.memory, made))
    parts = [(mine.vectors[1:], others.vectors[1:]), *zip(mine.pointwise, others.pointwise, strict=True)]
    for a, b in [*parts, *zip(mine.operand, others.operand, strict=True)]:
        assert torch.equal(a, b)
    terms = weights.pointwise_weight[..., 0] * weights.depthwise_bias
    # of a sum of n terms: n rounding errors at most; so of the mean that is taken off
    bound = 2 * (channels + 3) * 2.0**-24 * (terms.abs().sum(1) + weights.pointwise_bias.abs()).max()
    assert (mine.bias - others.bias).abs().max() <= bound


def test_signatures_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "KNOWN", 4)
    place = torch.ones(1, 1)
    for frames in range(2, 12):
        resample_windows(torch.ones(1, 1, frames), place, place, 3, backend="triton")
        assert len(ops._known) <= 4
    monkeypatch.setattr(backend, "PLANS", 2)
    calls = Calls(WINDOWED_TONALITY, tuple(small_arguments()), (W, EPS, "frame"))
    for n in range(6):
        needs = tuple(m == n for m in range(10))
        calls.backward(torch.ones(2, 2, 3, W, dtype=torch.float64), small_arguments(), None, needs)
        assert len(calls.plans) <= 2


def test_numbers_that_are_equal_are_not_the_same() -> None:
    x, place = torch.ones(1, 2, 5), torch.ones(1, 1)
    for name in ("triton", "reference"):
        resample_windows(x, place, place, 1, backend=name)
        for wrong in (True, 1.0):
            with pytest.raises(TypeError, match="window must be an int"):
                resample_windows(x, place, place, wrong, backend=name)  # type: ignore[arg-type]  # refused


def test_known_calls_are_refused_where_new_ones_are() -> None:
    """What a signature cannot see is looked at in every call."""
    given = small_arguments()
    function = FUNCTIONS["windowed_tonality"][0]
    function(*given)
    with pytest.raises(RuntimeError, match=r"torch\.func is active"):
        torch.func.grad(lambda v: function(v, *given[1:]).sum())(given[0])
    with pytest.raises(NotImplementedError, match="no forward-mode derivative"):
        torch.func.jvp(function, tuple(given), tuple(torch.ones_like(v) for v in given))
    with torch.autocast("cpu", torch.bfloat16):
        assert function(*(v.float() for v in given)).dtype == torch.bfloat16


def test_threads_plan_and_run_side_by_side() -> None:
    """Every thread gets its own result, whoever made the plan."""
    places = torch.tensor([[0.3, 2.7]])
    barrier = threading.Barrier(4)

    def work(n: int) -> bool:
        x = torch.randn(1, 3, 20, generator=torch.Generator().manual_seed(n))
        barrier.wait()
        good = True
        for frames in (20, 19, 18):
            got = resample_windows(x[..., :frames], places, places, 7, backend="triton")
            want = resample_windows(x[..., :frames], places, places, 7, backend="reference")
            good = good and torch.allclose(got, want, atol=1e-5)
        return good

    with started():  # with scratch and addresses; Triton's interpreter itself runs one kernel at a time
        lock = threading.Lock()
        from adaptive_window.kernels.triton import plan

        compiled = plan.compiled

        def guarded(step: Any, given: Any) -> Any:
            start = compiled(step, given)

            def locked(*a: Any, stream: int) -> None:
                with lock:
                    start(*a, stream=stream)

            return locked

        plan.compiled = guarded
        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(work, range(4)))


def test_copies_of_a_module_share_nothing_but_plans() -> None:
    from adaptive_window.model.tonality import TonalityReducer

    module = TonalityReducer(encoding_dim=4, kernel_size=3, backend="triton")
    y, strength = torch.randn(2, 3, 4, 11), torch.rand(2, 3)
    wanted = module(y, strength)
    twin = copy.deepcopy(module)
    with torch.no_grad():
        for weight in twin.parameters():
            weight.add_(0.5)
    assert torch.equal(module(y, strength), wanted)
    assert not torch.equal(twin(y, strength), wanted)


@pytest.mark.filterwarnings("ignore")  # of forking with threads
def test_a_forked_process_plans_on() -> None:
    """Even if the fork came while another thread held the lock."""
    x, place = torch.randn(1, 3, 20), torch.ones(1, 1)
    want = resample_windows(x, place, place, 7, backend="reference")
    resample_windows(x, place, place, 7, backend="triton")
    with ops._learning, backend._planning:
        child = os.fork()
        if child == 0:
            known = torch.allclose(resample_windows(x, place, place, 7, backend="triton"), want, atol=1e-5)
            fresh = resample_windows(x, place, place, 8, backend="triton").shape[-1] == 8
            os._exit(0 if known and fresh else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
