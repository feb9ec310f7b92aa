"""The benchmarks' own promises: no time without parity, counts that count, floors and exponents that are right."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))  # scripts, not a package

import agent_step
import attention
import harness
import operations
import parity
import providers
import roofline
import run
import scaling
from providers import PROVIDERS, Case

from adaptive_window.kernels import reference
from adaptive_window.kernels.native import library
from adaptive_window.model.attention import masked_attention

TINY = Case(batch=1, pairs=2, channels=8, frames=100, window=64)
EAGER = ("a loop", "b grid_sample", "c reference", "e ours separate", "f ours fused")


@pytest.fixture(autouse=True)
def _precision() -> Iterator[None]:
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def right(*inputs: Tensor) -> Tensor:
    return reference.windowed_tonality(*inputs, TINY.window, providers.EPS)


def wrong_values(*inputs: Tensor) -> Tensor:
    return 1.001 * right(*inputs)


def wrong_gradient(x: Tensor, start: Tensor, *rest: Tensor) -> Tensor:
    """Right values; d start doubled."""
    return right(x, start + (start - start.detach()), *rest)


def nan_in_one_place(*inputs: Tensor) -> Tensor:
    out = right(*inputs)
    return out + torch.where(torch.arange(out.numel()).view(out.shape) == 3, float("nan"), 0.0)


def no_gradient(x: Tensor, start: Tensor, *rest: Tensor) -> Tensor:
    return right(x, start.detach(), *rest)


def breaks(*inputs: Tensor) -> Tensor:
    raise RuntimeError("this one breaks")


class TestParityGate:
    @pytest.mark.parametrize("wrong", [wrong_values, wrong_gradient, nan_in_one_place, no_gradient, breaks])
    def test_no_time_for_a_wrong_provider(self, wrong: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(PROVIDERS, "wrong", lambda case: wrong)
        monkeypatch.setitem(PROVIDERS, "right", lambda case: right)
        bad, good = operations.compare(TINY, ("wrong", "right"), seconds=0.0, say=lambda line: None, fewest=1)
        assert "seconds" in good
        assert not {"seconds", "bytes_per_s", "graph_seconds"} & bad.keys()
        assert bad["note"]
        shown = next(line for line in operations.table([bad, good]).splitlines() if line.startswith("wrong"))
        assert shown.split(maxsplit=1)[1] == bad["note"]

    @pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
    @pytest.mark.parametrize("name", EAGER)
    def test_providers_agree(self, name: str, dtype: str) -> None:
        case = Case(batch=2, pairs=3, channels=16, frames=300, window=160, dtype=dtype)
        inputs, grad_out = providers.make_inputs(case), providers.make_output_gradient(case)
        true = parity.truth(inputs, grad_out, case.window)
        result = parity.check(name, providers.build(name, case), case, inputs, grad_out, true)
        assert result.passed, result.failures
        assert result.absent == (["start", "ratio"] if name == "a loop" else [])

    def test_missing_kernels_are_said_to_be_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(library, "why_not", lambda: "it was not built")
        (row,) = operations.compare(TINY, ("f ours fused",), seconds=0.0, fewest=1)
        assert row["note"] == "not run: there are no compiled CPU kernels: it was not built"
        assert "seconds" not in row

    def test_inputs_are_whole_windows_inside_the_clip(self) -> None:
        case = Case(batch=16, pairs=3, channels=1, frames=1200, window=800)
        _, start, ratio, *_ = providers.make_inputs(case)
        assert torch.equal(start, start.floor())
        assert torch.equal(ratio * 800, (ratio * 800).floor())
        assert bool(((start >= 0) & (start + ratio * 800 <= 1200) & (ratio > 1)).all())


class TestCounts:
    def test_host_syncs(self) -> None:
        case = Case(batch=3, pairs=2, channels=8, frames=100, window=64)
        inputs = providers.make_inputs(case)
        for name, wanted in (("a loop", 2 * 3 * 2), ("b grid_sample", 0), ("f ours fused", 0)):
            call = providers.build(name, case)
            assert harness.host_syncs(lambda call=call: call(*inputs), "cpu") == wanted, name

    def test_host_syncs_of_compiled_calls(self) -> None:
        """`torch.compile` refuses to run where operations are counted by a dispatch mode."""
        call = torch.compile(lambda x: x * 2 + 1, backend="eager", fullgraph=True)
        x = torch.zeros(3)
        call(x)
        assert harness.host_syncs(lambda: (call(x), x[0].item()), "cpu") == 1

    def test_peak_memory(self) -> None:
        x = torch.zeros(2**18)  # 1 MiB

        def two_then_one() -> Tensor:
            a = x + 1
            b = a + 1
            del a
            return b + 1  # two at a time, three in all

        assert harness.peak_bytes(two_then_one, "cpu") == pytest.approx(2 * 2**20, rel=0.01)

    def test_timing_is_a_median_with_its_middle_half(self) -> None:
        timing = harness.Timing.of([9.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0])
        assert (timing.best, timing.low, timing.median, timing.high, timing.repetitions) == (1, 3, 5, 7, 9)

    def test_ratios_are_taken_round_by_round(self) -> None:
        slow, fast = harness.Timing.of([2.0, 40.0, 9.0]), harness.Timing.of([1.0, 10.0, 3.0])
        ratio = slow.over(fast)
        assert (ratio.low, ratio.median, ratio.high) == (2, 3, 4)  # of the medians: 9 / 3; a slow round changes nothing
        assert "samples" not in ratio.describe()

    def test_precision_switches_agree_with_each_other(self) -> None:
        for on in (True, False):
            harness.set_tf32(on)
            assert torch.backends.cudnn.allow_tf32 is torch.backends.cuda.matmul.allow_tf32 is on
            assert (torch.backends.cudnn.conv.fp32_precision == "tf32") is on
            assert (torch.backends.cuda.matmul.fp32_precision == "tf32") is on

    def test_calls_are_timed_in_turn(self) -> None:
        order: list[str] = []
        calls = {name: (lambda name=name: order.append(name)) for name in "ab"}
        harness.time_calls(calls, "cpu", 0.0, {"b": lambda: order.append("before b")}, fewest=2)
        assert order == ["a", "before b", "b"] * 4  # two rounds of warming up, two timed


class TestFloors:
    def test_bytes_of_the_nominal_call(self) -> None:
        clips, windows = 32 * 128 * 1200 * 4, 32 * 3 * 128 * 800 * 4
        assert roofline.floor_bytes(Case(32)) == {
            "forward": clips + windows,
            "backward": 2 * clips + windows,
            "both": 3 * clips + 2 * windows,
        }
        assert roofline.floor_bytes(Case(32, dtype="bfloat16"))["both"] * 2 == 3 * clips + 2 * windows

    def test_model_adds_an_operations_kernels(self) -> None:
        nominal = {"B": 32, "P": 3, "C": 128, "T": 1200, "W": 800}
        one = {"op": "windowed_tonality backward", "dtype": "float32", "precision": "tf32"}
        launches = [one | {"microseconds": us, "in_a_row": us - 10} for us in (40.0, 60.5)]
        (row,) = roofline.model(launches, nominal)
        assert (row.kernels, row.predicted_us, row.alone_us) == (2, 80.5, 100.5)
        elements = 32 * 3 * 128 * 800
        assert row.floor_us == pytest.approx(1e6 * (2 * 32 * 128 * 1200 + elements) * 4 / roofline.COPY)


class TestScaling:
    @pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 2.0])
    def test_exponent_of_a_power_law(self, exponent: float) -> None:
        sizes = (1, 2, 4, 16)
        assert scaling.fit_exponent(sizes, [3e-3 * s**exponent for s in sizes]) == pytest.approx(exponent, abs=1e-12)

    def test_one_size_has_no_exponent(self) -> None:
        with pytest.raises(ValueError, match="got 1"):
            scaling.fit_exponent([8], [0.1])

    def test_measure_and_plot(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(scaling.AXES, "P", ("pairs", (1, 2)))
        said: list[str] = []
        results = scaling.measure(TINY, ("c reference",), ("P",), 0.0, said.append)
        assert results["axes"]["P"]["c reference"]["sizes"] == [1, 2]
        assert said[0].startswith("cost ~ P^")
        (path,) = scaling.plot(results, tmp_path, "a device, a date", "a-device")
        assert path.name == "a-device-scaling-P.svg"
        assert "<svg" in path.read_text()


class TestAttention:
    def test_rows(self) -> None:
        said: list[str] = []
        result = attention.measure("cpu", 2, 250, 0.0, 1, said.append)
        rows = {(row["mode"], row["variant"]): row for row in result["rows"]}
        assert list(rows) == [(m, v) for m in attention.MODES for v in attention.VARIANTS]
        assert all(row["seconds"]["median"] > 0 for row in rows.values())
        of = {v: rows["training", v]["peak_bytes"] for v in attention.VARIANTS}
        assert of["nn.MultiheadAttention"] > of["ours"] > of["without dropout"]
        assert len(said) == 2 + len(rows)

    def test_no_time_where_they_disagree(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(attention, "masked_attention", lambda *a: 1.001 * masked_attention(*a))
        with pytest.raises(RuntimeError, match=r"disagree by 1\.0e-03"):
            attention.measure("cpu", 1, 8, 0.0, 1)


class TestAgentStep:
    def test_the_first_step_warms_up(self, monkeypatch: pytest.MonkeyPatch) -> None:
        tiny = torch.nn.Linear(1, 1)

        class Agent(torch.nn.Module):
            def forward(self, x: Tensor, y: Tensor) -> tuple[list[Tensor], list[Tensor], None]:
                out = tiny(x.mean().view(1, 1))
                return [out], [out.sum()], None

        monkeypatch.setattr(agent_step, "build", lambda variant, window: Agent())
        for steps, timed in ((1, 1), (3, 2)):
            options = argparse.Namespace(variant="ours", device="cpu", batch=1, frames=8, window=4, steps=steps)
            options.count = steps == 3
            result = agent_step.run_steps(options)
            assert len(result["wall"]) == len(result["cpu"]) == timed
            assert result["counted"] == ({"host_syncs": 0, "launches": None} if options.count else {})


class TestRun:
    def test_parts_write_what_they_measured(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(run.SIZES, 50, (100, 64))
        path = tmp_path / "folder" / "results.json"
        command = [
            "--device",
            "cpu",
            "--quick",
            "--parts",
            "ops",
            "--json",
            str(path),
            "--providers",
            *EAGER,
            "--batch",
        ]
        assert run.main([*command, "1"]) == 0
        assert run.main([*command, "2", "--update"]) == 0
        written: dict[str, Any] = json.loads(path.read_text())
        assert [(row["case"]["batch"], row["provider"]) for row in written["ops"]] == [
            (b, name) for b in (1, 2) for name in EAGER
        ]
        assert all(row["seconds"]["both"]["median"] > 0 and row["of_floor"]["both"] > 0 for row in written["ops"])
        assert written["copy_bytes_per_s"] > 0
        assert written["machine"]["torch"] == torch.__version__

    def test_a_saved_file_is_named_by_device_and_day(self) -> None:
        name = run.file_name({"device": "AMD EPYC, 2 threads", "date": "2026-01-02"}, quick=False)
        assert name == Path(run.__file__).parent / "results" / "amd-epyc-2-threads-2026-01-02.json"
        quick = run.file_name({"device": "AMD EPYC, 2 threads", "date": "2026-01-02"}, quick=True)
        assert quick.name == name.name
        assert quick.parent != name.parent

    def test_what_was_measured_is_kept_when_the_part_is_cut_short(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(run.SIZES, 50, (100, 64))
        path = tmp_path / "results.json"
        kept: list[int] = []

        def stop_at_the_second(*arguments: Any, **more: Any) -> list[dict[str, Any]]:
            if path.exists():
                kept.append(len(json.loads(path.read_text())["ops"]))
                raise KeyboardInterrupt
            return compare(*arguments, **more)

        compare = run.compare
        monkeypatch.setattr(run, "compare", stop_at_the_second)
        command = ["--device", "cpu", "--parts", "ops", "--providers", "f ours fused", "--batch", "1", "2"]
        with pytest.raises(KeyboardInterrupt):
            run.main([*command, "--frame-rates", "50", "--seconds", "0", "--json", str(path)])
        assert kept == [1]

    @pytest.mark.parametrize(("batches", "one"), [((1, 8, 32), 8), ((1, 2), 2)])
    def test_other_rates_run_at_one_batch_size(self, batches: tuple[int, ...], one: int) -> None:
        options = run.parse(["--device", "cpu", "--batch", *map(str, batches)])
        chosen = [(case.batch, case.frames) for case in run.cases(options)]
        assert chosen == [*((b, 1200) for b in batches), (one, 1800)]

    def test_our_failure_is_the_exit_code(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(run.SIZES, 50, (100, 64))
        monkeypatch.setitem(PROVIDERS, "f ours fused", lambda case: wrong_values)
        assert run.main(["--device", "cpu", "--quick", "--parts", "ops", "--providers", "f ours fused"]) == 1

    def test_a_part_that_breaks_does_not_stop_the_next(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(options: object, results: dict[str, Any]) -> bool:
            raise RuntimeError("as planned")

        def good(options: object, results: dict[str, Any]) -> bool:
            results["codec"] = {"ratio": 2.0}
            return True

        monkeypatch.setitem(run.RUNNERS, "ops", broken)
        monkeypatch.setitem(run.RUNNERS, "codec", good)
        path = tmp_path / "results.json"
        assert run.main(["--device", "cpu", "--parts", "ops", "codec", "--json", str(path)]) == 1
        written = json.loads(path.read_text())
        assert written["failed"] == {"ops": "RuntimeError: as planned"}
        assert written["codec"] == {"ratio": 2.0}

    def test_update_refuses_another_machines_file(self, tmp_path: Path) -> None:
        path = tmp_path / "results.json"
        path.write_text(json.dumps({"machine": {"device": "another"}, "quick": False}))
        with pytest.raises(ValueError, match="of another machine"):
            run.main(["--device", "cpu", "--parts", "ops", "--json", str(path), "--update"])
