"""The model of the last-level cache: its rules, its walks against the kernels themselves, its error."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))  # last: the checkout's `kernels` must hide no other

from sanitizer import Sanitizer  # noqa: E402 - behind the path
from triton_calls import windowed_tonality_backward  # noqa: E402

from adaptive_window.kernels.triton.launch import Launch, record_launches  # noqa: E402
from tools import cache  # noqa: E402
from tools.cache import CHANNELS, FRAMES, Cache, Touch, Walk, turns  # noqa: E402

EPS = 1e-5
B, P, C, T, W, K = 2, 2, 32, 170, 96, 3
START = 20


def touch(kept: Cache, *blocks: int, **how: bool) -> None:
    for block in blocks:
        kept.touch(Touch((block,), 10.0, **how))


class TestCache:
    def test_the_block_touched_longest_ago_goes_first(self) -> None:
        kept = Cache(30.0)
        touch(kept, 1, 2, 3, 1, 4)  # 2 goes
        assert kept.read == 40.0
        touch(kept, 1, 3, 4)
        assert kept.read == 40.0
        touch(kept, 2)
        assert kept.read == 50.0

    def test_what_was_written_goes_to_memory_once(self) -> None:
        kept = Cache(20.0)
        touch(kept, 1, 1, store=True)
        assert (kept.read, kept.written) == (0.0, 0.0)
        touch(kept, 2, 3)
        assert (kept.read, kept.written) == (20.0, 10.0)
        touch(kept, 1, 4, 5)  # read again, and clean this time
        assert kept.written == 10.0

    def test_what_is_read_for_the_last_time_makes_room(self) -> None:
        kept = Cache(30.0)
        touch(kept, 1, 2)
        touch(kept, 3, last=True)
        touch(kept, 4, 1, 2)
        assert kept.read == 40.0
        touch(kept, 3)
        assert kept.read == 50.0


def test_programs_take_turns_and_each_others_places() -> None:
    def program(name: str, steps: int) -> Iterator[list[Touch]]:
        for n in range(steps):
            yield [Touch((ord(name), n), 1.0)]

    lengths = {"a": 1, "b": 3, "c": 2}
    steps = turns([partial(program, *one) for one in lengths.items()], together=2)
    order = "".join(chr(step[0].block[0]) for step in steps)
    assert sorted(order) == sorted("abbbcc")
    assert order.startswith("ab")
    assert order.index("c") < order.rindex("b")


Blocks = dict[tuple[str, int, str], list[tuple[int, int, int]]]  # kernel, program, argument -> pair, channels, frames


def backward_pass() -> tuple[list[Launch], Blocks, Blocks]:
    """The launches of a small backward pass, and the blocks of windows that their programs loaded and stored."""
    loaded: Blocks = defaultdict(list)
    stored: Blocks = defaultdict(list)

    def watch(kernel: str, program: int, name: str, stores: bool, elements: np.ndarray) -> None:
        places = (elements // (C * W), elements // W % C // CHANNELS, elements % W // FRAMES)
        blocks = np.unique(np.stack(places), axis=1).T.tolist()
        (stored if stores else loaded)[kernel, program, name] += [tuple(block) for block in blocks]

    torch.manual_seed(3)
    places = torch.full((B, P), float(START)), torch.full((B, P), cache.RATIO)
    weights = [torch.randn(size) for size in ((C, 1, K), (C,), (C, C, 1), (C,), (C,), (C,))]
    values = [torch.randn(B, C, T), *places, torch.rand(B, P), *weights]
    with record_launches() as launches, Sanitizer(watch=watch):
        windowed_tonality_backward(torch.randn(B, P, C, W), values, EPS, (True,) * 10)
    return launches, loaded, stored


@pytest.mark.skipif(os.environ["TRITON_INTERPRET"] != "1", reason="watches the interpreter")
def test_walks_are_those_of_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Program by program: windows in the same order, the blocks that it stores, and no block that it does not load."""
    monkeypatch.setattr(cache, "START", START)
    launches, loaded, stored = backward_pass()
    walked = [one for one in launches if cache.walks(one)]
    assert [one.name for one in walked] == ["recompute_windows", "joint_backward", "window_backward", "resample_dx"]
    compared = 0
    for launch in walked:
        names = {id(value): name for name, value in reversed(launch.arguments.items())}
        for number, program in enumerate(Walk(launch).programs()):
            mine: dict[tuple[str, bool], list[tuple[int, ...]]] = defaultdict(list)
            for step in program():
                for one in step:
                    mine[names[one.block[0]], one.store].append(one.block[1:])
            for (name, stores), blocks in mine.items():
                if name in ("source_ptr", "dx_ptr"):  # clips, of other sizes
                    continue
                real = (stored if stores else loaded)[launch.name, number, name]
                assert set(blocks) <= set(real), (launch.name, number, name)
                assert not stores or set(real) <= set(blocks), (launch.name, number, name)
                order = [[pair for pair, _ in groupby(block[0] for block in some)] for some in (blocks, real)]
                assert order[0] == order[1], (launch.name, number, name)
                compared += len(blocks)
    assert compared > 150


@pytest.mark.proof
def test_capacity_is_the_fitted_one_and_its_error_small() -> None:
    assert cache.fit() == cache.CAPACITY
    for seen, written in zip(cache.MEASURED, cache.modelled(cache.CAPACITY), strict=True):
        assert written == pytest.approx(seen.megabytes, abs=2.5), seen


@pytest.mark.proof
@pytest.mark.parametrize(("precision", "saved"), [("tf32", 0.15), ("bf16", 0.35)])
def test_stages_find_what_the_one_before_left(precision: str, saved: float) -> None:
    launches = cache.backward(precision)
    row = cache.follow(launches, [cache.at_once(one) for one in launches])
    alone = [cache.follow([one], [cache.at_once(one)])[0] for one in launches]
    assert sum(one.read for one in row) <= (1 - saved) * sum(one.read for one in alone)
    for one, behind in zip(alone, row, strict=True):
        assert behind.read <= one.read


HINTS = """
from tools.compiled import compile_launch
from tools.cache import backward
for one in backward("tf32"):
    if one.name in ("window_backward", "resample_dx"):
        print(one.name, compile_launch(one, 90).ptx.count("L2::evict_first"))
"""


@pytest.mark.proof
def test_the_last_reads_are_marked_for_the_gpu() -> None:
    clean = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", HINTS], cwd=ROOT, env=clean, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    found = dict(line.split() for line in done.stdout.splitlines())
    assert int(found["window_backward"]) >= 8  # g and dz, 4 rows of 4 frames each
    assert int(found["resample_dx"]) >= 64  # two frames of 32 channels
