"""Results as text, from a sample; and the one-command GPU run, with an interpreter that only pretends."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))  # scripts, not a package

import report

BENCHMARKS = Path(report.__file__).parent


def timed(provider: str, milliseconds: float, device: str) -> dict[str, Any]:
    one = {"median": milliseconds / 1e3, "low": milliseconds / 2e3, "high": milliseconds / 5e2}
    return {
        "provider": provider,
        "case": {"device": device},
        "title": "B=8 float32",
        "note": "",
        "seconds": dict.fromkeys(("forward", "backward", "both"), one),
        "of_floor": {"both": 3.25},
        "times_faster_than_loop": {"both": {"median": 2.5, "low": 2.25, "high": 3.0}},
        "peak_bytes": 5 * 2**20,
        "host_syncs": 7,
        "launches": 11 if device == "cuda" else None,
    }


def result(kind: str = "cpu", date: str = "2026-01-02", **parts: Any) -> dict[str, Any]:
    name = {"cpu": "a processor", "cuda": "a GPU"}[kind]
    machine = {"device": name, "kind": kind, "torch": "2.11.0", "cuda": None, "triton": "3.6.0", "date": date}
    ops = [timed("a loop", 80, kind), timed("d compiled shifts", 10, kind), timed("f ours fused", 25, kind)]
    ops.append({"provider": "b grid_sample", "case": {"device": kind}, "title": "B=8 float32", "note": "no time: x"})
    return {"schema": 1, "machine": machine, "quick": False, "copy_bytes_per_s": 20e9, "ops": ops} | parts


class TestReport:
    def test_nothing_measured(self) -> None:
        assert report.render([]) == report.NO_GPU + "\n"

    def test_a_cpu_is_no_gpu(self) -> None:
        text = report.render([result()])
        assert text.startswith(report.NO_GPU)
        assert "### a processor, torch 2.11.0, triton 3.6.0, 2026-01-02" in text
        assert "| a loop | 80 | 80 | 80 (40 to 160) | - | 2.50 (2.25 to 3.00) | 3.2 | 5 | 7 |" in text
        assert "| b grid_sample | no time: x |" in text
        assert "20.0 GB/s" in text

    def test_losses_are_said(self) -> None:
        text = report.render([result()])
        assert "`f ours fused` is 2.50 times **slower** than the fastest peer, `d compiled shifts`" in text

    def test_a_gpu_comes_first(self) -> None:
        text = report.render([result("cuda"), result()])
        assert report.NO_GPU not in text
        assert "| 7, 11 |" in text

    def test_the_other_parts(self) -> None:
        curve = {"sizes": [1, 2], "seconds": [1.0, 2.0], "exponent": 1.0}
        variant = {"seconds": {"median": 2.0, "low": 1.5, "high": 3.0}, "peak_mib": 1000.0, "idle_mib": 300.0,
                   "host_syncs": 4, "launches": None}  # fmt: skip
        half = variant | {"seconds": {"median": 1.0, "low": 0.9, "high": 1.1}, "peak_mib": 700.0, "host_syncs": 0}
        lean = {"mode": "training", "variant": "ours", "seconds": half["seconds"], "peak_bytes": 3 * 2**20}
        names = ("latents", "audio", "audio: decode", "audio: stretch", "audio: encode")
        times = {name: {"median": 0.001 * (i + 1)} for i, name in enumerate(names)}
        text = report.render(
            [
                result(
                    step=[{"batch": 8, "original": variant, "ours": half}],
                    scaling={"axes": {"B": {"f ours fused": curve}}},
                    codec={"ratio": 123.4, "times": times},
                    attention={"windows": 12, "frames": 800, "rows": [lean]},
                    failed={"static": "RuntimeError: no compiler"},
                )
            ]
        )
        assert "| seconds (middle half) | 2 (1.5 to 3) | 1 (0.9 to 1.1) | 0.50 |" in text
        assert "| peak memory, MiB | 1000 | 700 | 0.70 |" in text
        assert "| host syncs | 4 | 0 | - |" in text
        assert "| launches |" not in text
        assert "| training, ours | 1000 (900 to 1100) | 3 |" in text
        assert "takes 1 ms, the way through audio 2 ms (decode 3, stretch 4, encode 5): 123 times as fast" in text
        assert "| f ours fused | 1.00 |" in text
        assert "![cost against B](benchmarks/a-processor-scaling-B.svg)" in text
        assert "Part static failed: RuntimeError: no compiler" in text

    @pytest.mark.parametrize("part", [{}, {"base": {}, "axes": {}}])
    def test_scaling_cut_short(self, part: dict[str, Any], tmp_path: Path) -> None:
        assert report.render([result(scaling=part)]) == report.render([result()])
        assert report.plots([result(scaling=part)], tmp_path) == []

    def test_newest_of_a_device(self, tmp_path: Path) -> None:
        dates = ("2026-01-02", "2026-03-01", "2026-02-01")
        paths = [tmp_path / f"{n}.json" for n in range(3)]
        for path, date in zip(paths, dates, strict=True):
            path.write_text(json.dumps(result(date=date)))
        (only,) = report.load(paths)
        assert only["machine"]["date"] == "2026-03-01"

    @pytest.mark.parametrize(("change", "reason"), [({"quick": True}, "--quick"), ({"schema": 7}, "schema 1")])
    def test_what_is_no_result_is_refused(self, tmp_path: Path, change: dict[str, Any], reason: str) -> None:
        path = tmp_path / "a.json"
        path.write_text(json.dumps(result() | change))
        with pytest.raises(ValueError, match=reason):
            report.load([path])

    def test_check_and_write(self, tmp_path: Path) -> None:
        path, readme = tmp_path / "a.json", tmp_path / "README.md"
        path.write_text(json.dumps(result()))
        readme.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
        assert report.main([str(path), "--check", str(readme)]) == 1
        assert report.main([str(path), "--write", str(readme)]) == 0
        assert report.main([str(path), "--check", str(readme)]) == 0
        text = readme.read_text()
        assert text.startswith(f"before\n{report.BEGIN}\n")
        assert text.endswith(f"{report.END}\nafter\n")
        path.write_text(json.dumps(result(date="2026-01-03")))
        assert report.main([str(path), "--check", str(readme)]) == 1

    def test_plots_are_drawn_where_the_report_looks(self, tmp_path: Path) -> None:
        curve = {"sizes": [1, 2], "seconds": [1.0, 2.0], "exponent": 1.0}
        results = [result(kind, scaling={"axes": {"B": {"f ours fused": curve}}}) for kind in ("cuda", "cpu")]
        drawn = report.plots(results, tmp_path)
        wanted = re.findall(rf"\({report.PLOTS}/(.*?)\)", report.render(results))
        assert [path.name for path in drawn] == wanted == ["a-gpu-scaling-B.svg", "a-processor-scaling-B.svg"]

    def test_readme_holds_the_report_of_the_committed_results(self) -> None:
        assert report.main(["--check", str(BENCHMARKS.parent / "docs" / "results.md")]) == 0

    def test_committed_results_can_be_shown(self) -> None:
        paths = sorted((BENCHMARKS / "results").glob("*.json"))
        assert report.render(report.load(paths)).count("### ") == len({json.loads(p.read_text())["machine"]["device"]
                                                                       for p in paths})  # fmt: skip


class TestGpuRun:
    """`python3` is a script here that succeeds, but for the parts told to fail."""

    def run(self, folder: Path, failing: str, **environment: str) -> tuple[int, list[str]]:
        python = folder / "python"
        python.write_text(f'#!/bin/sh\necho "called: $*"\ncase "$*" in {failing}) exit 3;; esac\nexit 0\n')
        python.chmod(0o755)
        out = folder / "out"
        # no ncu or compute-sanitizer on this PATH: their absence is a note
        given = {"PATH": "/usr/bin:/bin", "PYTHON": str(python), "OUT": str(out), **environment}
        command = ["bash", str(BENCHMARKS / "gpu_run.sh")]
        done = subprocess.run(command, env=given, capture_output=True, text=True, timeout=30, check=False)
        return done.returncode, (out / "summary.txt").read_text().splitlines()

    def test_syntax(self) -> None:
        subprocess.run(["bash", "-n", str(BENCHMARKS / "gpu_run.sh")], check=True)
        assert os.access(BENCHMARKS / "gpu_run.sh", os.X_OK)

    def test_all_parts_in_order(self, tmp_path: Path) -> None:
        code, summary = self.run(tmp_path, "never")
        assert code == 0
        names = [line.split(":")[0] for line in summary]
        assert names[:6] == ["install", "environment", "compile", "tests", "agent", "ops"]
        slow = {"compiled", "step", "attention", "ncu", "memcheck", "scaling", "racecheck", "compose", "train"}
        assert {"kernels", "host", "tune"} | slow <= set(names)
        assert names[-1] == "total"

    def test_the_useful_half(self, tmp_path: Path) -> None:
        """Named by its seconds; what is left out is no failure."""
        code, summary = self.run(tmp_path, "never", BUDGET="240")
        assert code == 0
        wanted = ["install", "environment", "compile", "tests", "ops", "kernels", "host", "tune", "total"]
        assert [line.split(":")[0] for line in summary] == wanted

    def test_a_failing_part_stops_nothing_else(self, tmp_path: Path) -> None:
        code, summary = self.run(tmp_path, '*"-m pytest"*')
        assert code == 1
        assert next(line for line in summary if "FAILED" in line).startswith("tests: FAILED with code 3")
        assert any(line.startswith("scaling: ok") for line in summary)

    def test_an_agent_that_fails_beside_the_others_is_told(self, tmp_path: Path) -> None:
        code, summary = self.run(tmp_path, "*--variants*")
        assert code == 1
        assert [line.split(",")[0] for line in summary if "FAILED" in line] == ["agent: FAILED with code 1"]

    def test_without_an_install_nothing_runs(self, tmp_path: Path) -> None:
        code, summary = self.run(tmp_path, '*"-m pip"*')
        assert code == 1
        assert len(summary) == 1

    def test_no_part_starts_after_the_budget(self, tmp_path: Path) -> None:
        code, summary = self.run(tmp_path, "never", BUDGET="5")
        assert code == 1
        assert "install: not reached, no time left" in summary
