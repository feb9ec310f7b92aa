"""Every benchmark in one command; on a CPU or a CUDA device.

    python benchmarks/run.py                          # some minutes on two cores; without a GPU, the static table too
    python benchmarks/run.py --quick                  # a minute or two: does everything work
    python benchmarks/run.py --parts ops --batch 1 8 32 64 --dtypes float32 tf32 bfloat16 --frame-rates 50 75
    python benchmarks/run.py --save                   # to benchmarks/results/DEVICE-DATE.json, for report.py

Parts:
    ops       the providers side by side (providers.py): parity, then forward, backward and both
    attention what the composer's attention costs, three ways (attention.py)
    step      a whole training step of the agent against the original's structure (agent_step.py)
    scaling   cost against B, P, T, W and C (scaling.py)
    codec     compressing latents against decode, stretch, encode (codec_claim.py); needs encodec and torchaudio
    kernels   device time of each of our kernels (kernel_times.py); CUDA only
    static    for the kernels, without a GPU: device time predicted from what the compiler made of them

A provider whose values or gradients fail the parity check has no time printed. The exit code is 1 where ours fails it
or a part that was asked for breaks, else 0.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))  # also where this file is loaded by path
from harness import machine, set_tf32, slug
from operations import compare, table
from providers import BASELINE, OURS, PROVIDERS, Case
from roofline import copy_rate, model, predict_kernels, static_table

PARTS = ("ops", "kernels", "attention", "step", "scaling", "codec", "static")
SIZES = {50: (1200, 800), 75: (1800, 1200)}  # frames per second: T of 24 s, W of 16 s
DTYPES = ("float32", "tf32", "bfloat16", "float16", "float64")


def cases(options: argparse.Namespace) -> list[Case]:
    """Every batch size at the first dtype and rate, then every other dtype and rate at one batch size."""
    usual = 32 if options.device == "cuda" else 8
    one = usual if usual in options.batch else max(options.batch)
    chosen = [(b, options.dtypes[0], options.frame_rates[0]) for b in options.batch]
    chosen += [(one, dtype, options.frame_rates[0]) for dtype in options.dtypes[1:]]
    chosen += [(one, dtype, rate) for rate in options.frame_rates[1:] for dtype in options.dtypes]
    if options.all_combinations:
        chosen = [(b, d, r) for r in options.frame_rates for d in options.dtypes for b in options.batch]
    return [
        Case(
            batch,
            frames=SIZES[rate][0],
            window=SIZES[rate][1],
            dtype="float32" if dtype == "tf32" else dtype,
            tf32=dtype == "tf32",
            device=options.device,
        )
        for batch, dtype, rate in chosen
    ]


def run_ops(options: argparse.Namespace, results: dict[str, Any]) -> bool:
    results["copy_bytes_per_s"] = copy = copy_rate(options.device)
    print(f"device copy, read plus written: {copy / 1e9:.1f} GB/s")
    results["ops"], good = [], True
    for case in cases(options):
        rows = compare(case, options.providers, options.seconds, copy, fewest=1 if options.quick else 5)
        print(f"\n{case.title}\n{table(rows)}", flush=True)
        results["ops"] += rows
        options.save()
        good &= all("seconds" in r for r in rows if r["provider"] == OURS)
    set_tf32(False)
    return good


def run_kernels(options: argparse.Namespace, results: dict[str, Any]) -> bool:
    if options.device != "cuda":
        print("not run: only a GPU has these kernels")
        return True
    import kernel_times

    results["kernels"] = kernel_times.measure()
    return True


def run_attention(options: argparse.Namespace, results: dict[str, Any]) -> bool:
    import attention

    sizes = (1, 100) if options.quick else (12, 800)  # windows: four clips of three; frames
    results["attention"] = attention.measure(options.device, *sizes, seconds=2 * options.seconds,
                                             fewest=1 if options.quick else 5)  # fmt: skip
    return True


def run_step(options: argparse.Namespace, results: dict[str, Any]) -> bool:
    results["step"] = []
    here = Path(__file__).resolve().parent
    for batch in options.step_batch:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "step.json"
            command = [sys.executable, str(here / "agent_step.py"), "--device", options.device, "--json", str(path)]
            command += ["--batch", str(batch), "--steps", str(options.steps), "--rounds", str(options.rounds)]
            if subprocess.run(command, check=False).returncode != 0:
                return False
            results["step"].append({"batch": batch, **json.loads(path.read_text())})
            options.save()
    return True


def run_scaling(options: argparse.Namespace, results: dict[str, Any]) -> bool:
    import scaling

    base = Case(8 if options.device == "cuda" else 2, device=options.device)
    if options.quick:
        base = Case(1, channels=16, frames=300, window=160, device=options.device)
    providers = [OURS] if options.quick else [BASELINE, OURS]
    results["scaling"] = {}
    scaling.measure(base, providers, options.axes, options.seconds / 5, print, results["scaling"], options.save)
    return all(OURS in curves for curves in results["scaling"]["axes"].values())


def run_codec(options: argparse.Namespace, results: dict[str, Any]) -> bool:
    import codec_claim

    try:
        results["codec"] = codec_claim.measure(options.device, options.seconds, 1 if options.quick else 3)
    except ImportError as error:
        print(f"not run: {error} (pip install -e '.[encodec]')")
        results["codec"] = {"note": f"not run: {error}"}
    return True


def run_static(options: argparse.Namespace, results: dict[str, Any]) -> bool:
    sys.path.append(str(Path(__file__).resolve().parents[1]))
    from tools import calibration
    from tools.specimens import NOMINAL

    selections: tuple[tuple[str, ...], ...] = (("windowed_tonality", "float32"), ("windowed_tonality", "bfloat16"))
    if options.all_kernels:
        selections = ((),)
    if options.quick:
        selections = (("windowed_tonality forward", "float32", "tf32"),)
    kernels = [one for only in selections for one in predict_kernels(only)]
    rows = model(kernels, NOMINAL)
    points = calibration.load()
    error = {"fitted": calibration.median(calibration.fitted(points)), "points": len(points)}
    error["left_out"] = calibration.median(calibration.left_out(points))
    sizes = ", ".join(f"{k}={v}" for k, v in NOMINAL.items())
    print(f"A MODEL, not a measurement: an H100 at {sizes}, per stream; launch gaps are not in it. Median error on "
          f"kernels that it was not fitted to: {100 * error['left_out']:.0f} %.")  # fmt: skip
    print(static_table(rows))
    results["static"] = {"nominal": NOMINAL, "error": error, "rows": [vars(row) for row in rows], "kernels": kernels}
    return True


RUNNERS = {
    "ops": run_ops,
    "kernels": run_kernels,
    "attention": run_attention,
    "step": run_step,
    "scaling": run_scaling,
    "codec": run_codec,
    "static": run_static,
}


def earlier(path: Path | None, results: dict[str, Any]) -> dict[str, Any]:
    """What an existing file holds of the same machine and versions; ValueError where it is another's."""
    if path is None or not path.exists():
        return {}
    before = json.loads(path.read_text())
    for key in ("machine", "quick"):
        if before.get(key) != results[key]:
            raise ValueError(f"--update: {path} is of another {key}: {before.get(key)}")
    return before


def merged(before: dict[str, Any], results: dict[str, Any]) -> dict[str, Any]:
    """Parts measured now replace earlier ones; of `ops`, case by case."""
    after = before | results
    if "ops" in before and "ops" in results:
        titles = {row["title"] for row in results["ops"]}
        after["ops"] = [row for row in before["ops"] if row["title"] not in titles] + results["ops"]
    return after


def file_name(machine: dict[str, Any], quick: bool) -> Path:
    """benchmarks/results/DEVICE-DATE.json; a quick run goes elsewhere, since its times mean nothing."""
    folder = Path(tempfile.gettempdir()) if quick else Path(__file__).resolve().parent / "results"
    return folder / f"{slug(machine['device'])}-{machine['date']}.json"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--parts", nargs="+", choices=PARTS, help="default: all; static only without a GPU")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    add("--batch", type=int, nargs="+", help="default: 1 8 32, and 64 on CUDA")
    add("--dtypes", nargs="+", choices=DTYPES, help="default: float32, and tf32 bfloat16 on CUDA")
    add(
        "--frame-rates",
        type=int,
        nargs="+",
        choices=tuple(SIZES),
        default=[50, 75],
        help="frames/s: 1200 -> 800, 1800 -> 1200",
    )
    add("--all-combinations", action="store_true", help="of batch, dtypes and frame rates, not only along each")
    add("--providers", nargs="+", choices=tuple(PROVIDERS), metavar="NAME", help=f"of {', '.join(PROVIDERS)}")
    add("--axes", nargs="+", choices=tuple("BPTWC"), default=list("BPTWC"), help="of the part scaling")
    add("--step-batch", type=int, nargs="+", help="batch sizes of the part step; default 4, on CUDA 16")
    add("--steps", type=int, default=3, help="of the part step, per process; the first warms up")
    add("--rounds", type=int, default=2, help="of the part step, processes per variant")
    add("--seconds", type=float, default=10.0, help="of timing per case, all its providers together")
    add("--all-kernels", action="store_true", help="part static: every op and dtype (minutes), not the fused op alone")
    add("--threads", type=int, help="PyTorch's threads on the CPU")
    add("--quick", action="store_true", help="the smallest run of everything chosen: its times mean nothing")
    add("--json", type=Path, help="write the results here")
    add("--save", action="store_true", dest="named", help="write them to benchmarks/results/DEVICE-DATE.json")
    add("--update", action="store_true", help="keep what the --json file has of this device and is not measured now")
    options = parser.parse_args(arguments)
    cuda = options.device == "cuda"
    options.batch = options.batch or ([1, 8, 32, 64] if cuda else [1, 8, 32])
    options.dtypes = options.dtypes or (["float32", "tf32", "bfloat16"] if cuda else ["float32"])
    options.parts = options.parts or [part for part in PARTS if part != ("static" if cuda else "kernels")]
    options.step_batch = options.step_batch or ([16] if cuda else [4])
    options.providers = options.providers or list(PROVIDERS)
    if options.quick:
        options.batch, options.frame_rates, options.axes = options.batch[:1], options.frame_rates[:1], options.axes[:1]
        options.seconds, options.steps, options.rounds, options.step_batch = 0.5, 1, 1, [1]
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
        os.environ["OMP_NUM_THREADS"] = str(options.threads)  # for the processes of the part step
    results: dict[str, Any] = {"schema": 1, "machine": machine(options.device), "quick": options.quick}
    print(", ".join(f"{key} {value}" for key, value in results["machine"].items() if value is not None))
    if options.named:
        options.json = options.json or file_name(results["machine"], options.quick)
    before = earlier(options.json, results) if options.update else {}

    def save() -> None:  # after every case and part: a run that is cut short keeps what it has
        if options.json:
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(json.dumps(merged(before, results), indent=1) + "\n")

    options.save = save
    broken = []
    for part in options.parts:
        print(f"\n== {part} ==", flush=True)
        began = time.perf_counter()
        try:
            good = RUNNERS[part](options, results)
        except Exception as error:  # one part failing must not lose the others; the exit code tells
            print(f"{part} failed: {type(error).__name__}: {error}")
            results.setdefault("failed", {})[part] = f"{type(error).__name__}: {error}"
            good = False
        broken += [] if good else [part]
        print(f"({part}: {time.perf_counter() - began:.0f} s)", flush=True)
        save()
    if broken:
        print(f"\nnot good: {', '.join(broken)}")
    if options.json:
        print(f"\nresults in {options.json}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
