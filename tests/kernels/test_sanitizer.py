"""The sanitizer finds each kind of bug in a small broken kernel, says where, and is silent about its sound twin."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from sanitizer import BadNumber, OutOfBounds, Race, Report, Sanitizer, Uninitialised
from torch import Tensor

pytestmark = pytest.mark.skipif(os.environ["TRITON_INTERPRET"] != "1", reason="checks kernels in the interpreter only")


@triton.jit
def scale(x_ptr, out_ptr, stride, length, BLOCK: tl.constexpr, SLACK: tl.constexpr, MASKED: tl.constexpr):
    """out[i] = 2·x[i·stride]; SLACK > 0 reads and writes that many elements too far."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = i < length + SLACK
    if MASKED:
        x = tl.load(x_ptr + i * stride, mask=mask, other=0.0)
        tl.store(out_ptr + i, 2 * x, mask=mask)
    else:
        tl.store(out_ptr + i, 2 * tl.load(x_ptr + i * stride))


def run_scale(x: Tensor, out: Tensor, slack: int = 0, masked: bool = True, stride: int | None = None) -> None:
    stride = x.stride(0) if stride is None else stride
    scale[(triton.cdiv(len(out), 8),)](x, out, stride, len(out), BLOCK=8, SLACK=slack, MASKED=masked)


@triton.jit
def inner_load(ptr, i):
    return tl.load(ptr + i)


@triton.jit
def nested(x_ptr, out_ptr):
    tl.store(out_ptr, inner_load(x_ptr, 99))


@triton.jit
def share(x_ptr, out_ptr, MODE: tl.constexpr):
    """Two programs, one element."""
    n = tl.program_id(0)
    if MODE == "store store":
        tl.store(out_ptr, n)
    elif MODE == "store load":
        tl.store(out_ptr + n, tl.load(out_ptr + 1 - n))
    elif MODE == "same value":
        tl.store(out_ptr, 1)
    elif MODE == "lanes":
        i = tl.arange(0, 4)
        tl.store(out_ptr + n * 4 + i // 2, i)
    elif MODE == "atomic":
        tl.atomic_add(out_ptr, 1)
    elif MODE == "atomic load":
        tl.atomic_add(out_ptr, 1)
        tl.store(out_ptr + 1 + n, tl.load(out_ptr))
    elif MODE == "own":
        tl.store(out_ptr + n, 1)
        tl.store(out_ptr + n, tl.load(out_ptr + n) + 1)
    elif MODE == "own with barrier":
        tl.store(out_ptr + n, 1)
        tl.debug_barrier()
        value = tl.load(out_ptr + n) + 1
        tl.debug_barrier()
        tl.store(out_ptr + n, value)
    else:
        tl.store(out_ptr + n, tl.load(x_ptr) + tl.load(out_ptr + n))


@triton.jit
def accumulate(x_ptr, out_ptr):
    i = tl.arange(0, 4)
    tl.store(out_ptr + i, tl.load(out_ptr + i) + tl.load(x_ptr + i))


@triton.jit
def halves(out_ptr, PART: tl.constexpr):
    i = tl.arange(0, 4)
    tl.store(out_ptr + PART * 4 + i, i.to(tl.float32))


@triton.jit
def numbers(value_ptr, factor, out_ptr, MODE: tl.constexpr):
    if MODE == "integers":
        tl.store(out_ptr, factor * 70_000 + 1)
    elif MODE == "wide":
        tl.store(out_ptr, factor.to(tl.int64) * 70_000 + 1)
    else:
        tl.store(out_ptr, tl.load(value_ptr).to(tl.int32))


@triton.jit
def persistent(x_ptr, start_ptr, out_ptr, tiles, stride_b, C: tl.constexpr, WIDE: tl.constexpr):
    n = tl.program_id(0)
    while n < tiles:
        b = n.to(tl.int64) if WIDE else n
        value = tl.load(x_ptr + b * stride_b + tl.load(start_ptr + n).to(tl.int32) + tl.arange(0, C))
        tl.store(out_ptr + b * C + tl.arange(0, C), value)
        n += tl.num_programs(0)


def found(kind: type[Report], run: Callable[..., None], *args: Any, **kwargs: Any) -> str:
    with Sanitizer(), pytest.raises(kind) as caught:
        run(*args, **kwargs)
    assert type(caught.value) is kind
    return str(caught.value)


def line_of(text: str) -> str:
    with open(__file__) as source:
        numbers_of = [n for n, line in enumerate(source, 1) if text in line]
    return f"line {numbers_of[0]}"


class TestMemcheck:
    def test_sound_kernel(self) -> None:
        x, out = torch.randn(13), torch.empty(13)
        with Sanitizer() as sanitizer:
            run_scale(x, out)
        assert torch.equal(out, 2 * x)
        assert sanitizer.accesses == 4
        assert sanitizer.launches == {"scale": 1}

    def test_one_element_too_far(self) -> None:
        """The element behind is another tensor's memory: nothing crashes, values may even be right."""
        buffer = torch.randn(40)
        text = found(OutOfBounds, run_scale, buffer[10:23], torch.empty(13), slack=1)
        assert line_of("x = tl.load(x_ptr + i * stride, mask=mask") in text
        assert "scale: " in text
        assert "element 13 of 13 of x_ptr (shape [13], strides [1])" in text
        assert "program (1, 0, 0)" in text

    def test_no_mask(self) -> None:
        found(OutOfBounds, run_scale, torch.randn(13), torch.empty(13), masked=False)
        with Sanitizer():
            run_scale(torch.randn(16), torch.empty(16), masked=False)

    def test_stores_are_checked_too(self) -> None:
        text = found(OutOfBounds, run_scale, torch.randn(14), torch.empty(13), slack=1)
        assert "store out of bounds: element 13 of 13 of out_ptr" in text

    def test_before_the_beginning(self) -> None:
        text = found(OutOfBounds, run_scale, torch.randn(26)[13:], torch.empty(13), stride=-1)
        assert "element -1 of 13" in text

    def test_holes_of_a_strided_view(self) -> None:
        x = torch.randn(26)[::2]
        with Sanitizer():
            run_scale(x, torch.empty(13))
        text = found(OutOfBounds, run_scale, x, torch.empty(13), stride=1)
        assert "element 1 of 25 of x_ptr (shape [13], strides [2])" in text

    def test_holes_of_an_expanded_view(self) -> None:
        x = torch.randn(1, 26)[:, ::2].expand(40, 13)  # more elements than its extent, and holes nevertheless
        found(OutOfBounds, run_scale, x[0], torch.empty(13), stride=1)

    def test_inside_a_device_function(self) -> None:
        text = found(OutOfBounds, nested[(1,)], torch.randn(4), torch.empty(1))
        assert "nested: " + line_of("return tl.load(ptr + i)") in text

    def test_masked_out_pointers_may_be_anything(self) -> None:
        with Sanitizer():
            run_scale(torch.randn(3), torch.empty(3))

    def test_values_and_hooks_come_back(self) -> None:
        before = (torch.empty, Tensor.new_empty, triton.runtime.interpreter._interpreter)
        with Sanitizer(), pytest.raises(OutOfBounds):
            run_scale(torch.randn(3), torch.empty(4))
        assert before == (torch.empty, Tensor.new_empty, triton.runtime.interpreter._interpreter)
        run_scale(torch.randn(16), torch.empty(13), slack=1, masked=True, stride=0)  # unchecked again


class TestRacecheck:
    def run(self, mode: str) -> Tensor:
        out = torch.zeros(8, dtype=torch.int32)
        share[(2,)](torch.ones(1, dtype=torch.int32), out, MODE=mode)
        return out

    @pytest.mark.parametrize("mode", ["store store", "same value", "store load"])
    def test_two_programs(self, mode: str) -> None:
        text = found(Race, self.run, mode)
        assert "programs race for an element" in text
        assert "program [(0, 0, 0), (1, 0, 0)]" in text

    def test_two_lanes_of_one_store(self) -> None:
        assert "one store writes an element of out_ptr twice" in found(Race, self.run, "lanes")

    def test_a_program_and_itself(self) -> None:
        assert "without a barrier" in found(Race, self.run, "own")
        with Sanitizer():
            assert self.run("own with barrier").tolist()[:2] == [2, 2]

    def test_atomics_are_refused_unless_allowed(self) -> None:
        assert "order is not fixed" in found(Race, self.run, "atomic")
        with Sanitizer(allow_atomics=True):
            assert self.run("atomic")[0] == 2

    def test_atomics_and_loads_do_not_mix(self) -> None:
        with Sanitizer(allow_atomics=True), pytest.raises(Race, match="programs race"):
            self.run("atomic load")

    def test_reading_together_is_no_race(self) -> None:
        with Sanitizer():
            assert self.run("read").tolist()[:2] == [1, 1]

    def test_views_of_one_storage_are_one_memory(self) -> None:
        buffer = torch.ones(24)
        text = found(Race, run_scale, buffer[:12], buffer[11:23])
        assert "element 11" in text
        with Sanitizer():
            run_scale(buffer[:12], buffer[12:])

    def test_launches_come_one_after_another(self) -> None:
        x, out = torch.randn(16), torch.empty(16)
        with Sanitizer():
            run_scale(x, out)
            run_scale(out, x)


class TestInitcheck:
    @pytest.mark.parametrize(
        "allocate",
        [
            lambda x: torch.empty(4),
            lambda x: torch.empty_like(x),  # looked up late: the sanitizer replaces it
            lambda x: x.new_empty(4),
            lambda x: torch.empty_strided((4,), (1,)),
            lambda x: torch.empty(8)[2:6],
        ],
    )
    def test_unwritten(self, allocate: Callable[[Tensor], Tensor]) -> None:
        def run() -> None:
            x = torch.ones(4)
            accumulate[(1,)](x, allocate(x))

        text = found(Uninitialised, run)
        assert "load of unwritten element" in text
        assert "of out_ptr" in text

    @pytest.mark.parametrize("write", [Tensor.zero_, lambda t: t.fill_(1.0), lambda t: t.copy_(torch.ones(4))])
    def test_written_by_torch(self, write: Callable[[Tensor], Tensor]) -> None:
        with Sanitizer():
            out = torch.empty(4)
            write(out)
            accumulate[(1,)](torch.ones(4), out)

    def test_written_by_another_launch(self) -> None:
        with Sanitizer():
            out = torch.empty(8)
            halves[(1,)](out, PART=0)
            accumulate[(1,)](torch.ones(4), out[:4])
            with pytest.raises(Uninitialised, match="unwritten element 4"):
                accumulate[(1,)](torch.ones(4), out[4:])

    def test_memory_that_came_back(self) -> None:
        """New tensors at an old address are not held for the old one's holes."""
        with Sanitizer():
            for _ in range(20):
                out = torch.empty(4)
                del out
                accumulate[(1,)](torch.ones(4), torch.zeros(4))


class TestNumbers:
    @pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e9, -3e9])
    def test_conversion(self, value: float) -> None:
        out = torch.zeros(1, dtype=torch.int64)
        assert "out of range becomes int32" in found(
            BadNumber, numbers[(1,)], torch.tensor([value]), 1, out, MODE="convert"
        )

    def test_sound_conversion(self) -> None:
        out = torch.zeros(1, dtype=torch.int64)
        with Sanitizer():
            numbers[(1,)](torch.tensor([-(2.0**31)]), 1, out, MODE="convert")
        assert out.item() == -(2**31)

    def test_integers_wrap_around(self) -> None:
        out = torch.zeros(1, dtype=torch.int64)
        assert "multiply of 32-bit integers" in found(BadNumber, numbers[(1,)], out, 70_000, out, MODE="integers")
        with Sanitizer():
            numbers[(1,)](out, 70_000, out, MODE="wide")
        assert out.item() == 70_000 * 70_000 + 1


class TestHugeTensors:
    """Meta tensors: 2³² elements that nobody allocates."""

    def run(self, wide: bool, start: float = 0.0, **options: Any) -> Sanitizer:
        rows, length = 1 << 9, 1 << 23
        programs_of_grid = rows if options else 2
        x, out = torch.empty(rows, length, device="meta"), torch.empty(rows, 64, device="meta")
        with Sanitizer(contents={"start_ptr": start}, **options) as sanitizer:
            starts = torch.empty(rows, device="meta")
            persistent[(programs_of_grid,)](x, starts, out, rows, length, C=64, WIDE=wide)
        return sanitizer

    def test_thirty_two_bit_offsets_are_found(self) -> None:
        with pytest.raises(BadNumber, match="multiply of 32-bit integers wraps around"):
            self.run(wide=False)

    def test_sixty_four_bits_pass(self) -> None:
        assert self.run(wide=True).accesses == 3 * 512

    def test_contents_and_bounds(self) -> None:
        self.run(wide=True, start=float((1 << 23) - 64))
        with pytest.raises(OutOfBounds, match="x_ptr"):
            self.run(wide=True, start=float((1 << 23) - 63))

    def test_a_sample_of_programs(self) -> None:
        """The first and the last are among them."""
        assert self.run(wide=True, programs=5).accesses == 3 * 5
        with pytest.raises(OutOfBounds, match=r"program \(511, 0, 0\)"):
            self.run(wide=True, start=float((1 << 23) - 63), programs=5)
