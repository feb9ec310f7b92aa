"""Results as text: Markdown tables and SVG plots from the JSON that run.py writes.

    python benchmarks/report.py                        # every file in benchmarks/results, newest of each device
    python benchmarks/report.py a.json --plots plots   # these files; plots into plots/
    python benchmarks/report.py --check docs/results.md  # exit 1 unless it holds the report as it is now
    python benchmarks/report.py --write docs/results.md --plots docs/benchmarks

Where no result comes from a GPU the report says that none was measured. `--check` and `--write` look between the lines
`<!-- benchmarks -->` and `<!-- /benchmarks -->`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from harness import slug
from operations import peer
from providers import OURS

HERE = Path(__file__).resolve().parent
BEGIN, END = "<!-- benchmarks -->", "<!-- /benchmarks -->"
PLOTS = "benchmarks"  # where docs/results.md looks for them
NO_GPU = "No figure here comes from a GPU: none has been measured yet."


def load(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Results, GPUs first; of several with one device the newest date. A quick run is no result: ValueError."""
    newest: dict[str, dict[str, Any]] = {}
    for path in sorted(paths):
        result = json.loads(path.read_text())
        if result.get("schema") != 1:
            raise ValueError(f"{path}: not a result of benchmarks/run.py (schema 1)")
        if result["quick"]:
            raise ValueError(f"{path}: made with --quick, whose times mean nothing")
        device = result["machine"]["device"]
        if device not in newest or newest[device]["machine"]["date"] <= result["machine"]["date"]:
            newest[device] = result
    return sorted(newest.values(), key=lambda r: (r["machine"]["kind"] != "cuda", r["machine"]["device"]))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    aligned = ["---", *("---:" for _ in head[1:])]
    return [f"| {' | '.join(cells)} |" for cells in (head, aligned, *rows)]


def _ms(seconds: float) -> str:
    """Milliseconds with three digits, or all before the point."""
    return f"{1e3 * seconds:.3g}" if seconds < 0.0995 else f"{1e3 * seconds:.0f}"


def _ratio(value: dict[str, float]) -> str:
    return f"{value['median']:.2f} ({value['low']:.2f} to {value['high']:.2f})"


def _versions(machine: dict[str, Any]) -> str:
    parts = [f"torch {machine['torch']}"]
    parts += [f"{name} {machine[name]}" for name in ("cuda", "triton") if machine.get(name)]
    return f"{machine['device']}, {', '.join(parts)}, {machine['date']}"


def operations(result: dict[str, Any]) -> list[str]:
    lines: list[str] = []
    titles = list(dict.fromkeys(row["title"] for row in result["ops"]))
    for title in titles:
        rows = [row for row in result["ops"] if row["title"] == title]
        cells = []
        for row in rows:
            if "seconds" not in row:
                cells.append([row["provider"], row["note"], *[""] * 7])
                continue
            both = row["seconds"]["both"]
            replay = row.get("graph_seconds", {}).get("both")
            cells.append(
                [
                    row["provider"],
                    *(_ms(row["seconds"][way]["median"]) for way in ("forward", "backward")),
                    f"{_ms(both['median'])} ({_ms(both['low'])} to {_ms(both['high'])})",
                    _ms(replay["median"]) if replay else "-",
                    _ratio(row["times_faster_than_loop"]["both"]) if "times_faster_than_loop" in row else "-",
                    f"{row['of_floor']['both']:.1f}" if "of_floor" in row else "-",
                    f"{row['peak_bytes'] / 2**20:.0f}",
                    f"{row['host_syncs']}" + (f", {row['launches']}" if row["launches"] is not None else ""),
                ]
            )
        head = ("", "forward ms", "backward ms", "both ms (middle half)", "graph ms", "× loop", "× floor", "MiB",
                "syncs, launches")  # fmt: skip
        lines += [f"**{title}**", "", *_table(head, cells), "", verdict(rows), ""]
    return lines


def verdict(rows: Sequence[dict[str, Any]]) -> str:
    """Ours against the fastest peer, whichever way it goes."""
    timed = {row["provider"]: row["seconds"]["both"]["median"] for row in rows if "seconds" in row}
    fastest = peer(rows)
    if OURS not in timed or fastest is None:
        return "Ours or every peer is missing here: nothing to compare."
    ratio = timed[fastest] / timed[OURS]
    word = "faster than" if ratio >= 1 else "**slower** than"
    text = f"`{OURS}` is {max(ratio, 1 / ratio):.2f} times {word} the fastest peer, `{fastest}` (forward and backward)."
    return text + _graph_verdict(rows)


def _graph_verdict(rows: Sequence[dict[str, Any]]) -> str:
    """The same for CUDA graphs, in which the host's time is not."""
    replays = {row["provider"]: row["graph_seconds"]["both"]["median"] for row in rows if "graph_seconds" in row}
    peers = {name: value for name, value in replays.items() if name[0] in "bd"}
    if OURS not in replays or not peers:
        return ""
    fastest = min(peers, key=peers.__getitem__)
    ratio = peers[fastest] / replays[OURS]
    word = "faster than" if ratio >= 1 else "**slower** than"
    return f" As CUDA graphs it is {max(ratio, 1 / ratio):.2f} times {word} `{fastest}`."


def step(result: dict[str, Any]) -> list[str]:
    lines = []
    for entry in result["step"]:
        a, b = entry["original"], entry["ours"]

        seconds = [f"{v['median']:.3g} ({v['low']:.3g} to {v['high']:.3g})" for v in (a["seconds"], b["seconds"])]
        cells = [["seconds (middle half)", *seconds, f"{b['seconds']['median'] / a['seconds']['median']:.2f}"]]
        names = {"peak_mib": "peak memory, MiB", "idle_mib": "of that before the first step",
                 "host_syncs": "host syncs", "launches": "launches"}  # fmt: skip
        for key, label in names.items():
            if a[key] is None:  # launches on a CPU
                continue
            ratio = f"{b[key] / a[key]:.2f}" if a[key] and b[key] else "-"
            cells.append([label, *(f"{v[key]:.0f}" for v in (a, b)), ratio])
        text = f"**Training step of the whole agent**, forward and backward, batch {entry['batch']}, 3 pairs, float32:"
        lines += [text, "", *_table(("", "original", "ours", "ratio"), cells), ""]
    return lines


def attention(result: dict[str, Any]) -> list[str]:
    part = result["attention"]
    cells = []
    for row in part["rows"]:
        t = row["seconds"]
        cells.append([f"{row['mode']}, {row['variant']}", f"{_ms(t['median'])} ({_ms(t['low'])} to {_ms(t['high'])})",
                      f"{row['peak_bytes'] / 2**20:.0f}"])  # fmt: skip
    text = (
        f"**Self-attention of one composer layer**, {part['windows']} windows of {part['frames']} frames (training: "
        "forward and backward with dropout; `without dropout` is what the layer would cost at dropout 0):"
    )
    return [text, "", *_table(("", "ms (middle half)", "peak MiB"), cells), ""]


def scaling(result: dict[str, Any]) -> list[str]:
    axes = result["scaling"].get("axes")
    if not axes:  # cut short before the first was done
        return []
    providers = list(next(iter(axes.values())))
    cells = [
        [p, *(f"{axes[a][p]['exponent']:.2f}" if "exponent" in axes[a][p] else "-" for a in axes)] for p in providers
    ]
    text = "**Scaling**: cost of forward and backward grows as size to the power of"
    name = slug(result["machine"]["device"])
    pictures = " ".join(f"![cost against {axis}]({PLOTS}/{name}-scaling-{axis}.svg)" for axis in axes)
    return [text, "", *_table(("", *axes), cells), "", pictures, ""]


OF_OURS = ("prepare_weights", "windowed_tonality_forward", "recompute_windows", "joint_backward", "norm_backward",
           "product_backward", "window_backward", "finish_gradients", "resample_dx")  # fmt: skip


def kernels(result: dict[str, Any]) -> list[str]:
    """Device time of each kernel as measured: launches that occur twice are counted twice."""
    rows = result["kernels"]
    precisions = list(dict.fromkeys(row["precision"] for row in rows))
    names = list(dict.fromkeys(row["kernel"] for row in rows))
    spent = {(row["kernel"], row["precision"]): row["microseconds"] * row["launches"] for row in rows}
    cells = [[f"`{n[:60]}`", *(f"{spent[n, p]:.1f}" if (n, p) in spent else "-" for p in precisions)] for n in names]
    cells.append(["all", *(f"{sum(v for (_, q), v in spent.items() if q == p):.1f}" for p in precisions)])
    text = "**Device time of each kernel**, forward and backward, B = 32, µs, the last-level cache written over before:"
    return [text, "", *_table(("", *precisions), cells), ""]


def static(result: dict[str, Any]) -> list[str]:
    part = result["static"]
    cells = [
        [row["op"], f"{row['dtype']} {row['precision']}", str(row["kernels"]), f"{row['predicted_us']:.0f}",
         f"{row['alone_us']:.0f}", f"{row['floor_us']:.0f}", f"{row['predicted_us'] / row['floor_us']:.1f}"]
        for row in part["rows"]
    ]  # fmt: skip
    text = (
        "**The GPU kernels as they are now: a prediction, not a measurement.** Device time on an H100 from what the "
        f"compiler made of them (`python -m tools.device_time`), which for {part['error']['points']} measured "
        f"configurations is {100 * part['error']['left_out']:.0f} % off in the middle where their kernel was left out "
        'of the fit; without launch gaps. "Alone": nothing in the caches, as those were measured; the sums beside it '
        "are of launches in a row, where each finds what the one before has left (`python -m tools.cache`, fitted to "
        "what kernels had not yet written to memory when they ended). `prepare_weights`, whose programs do different "
        "things, comes out too long, as if each did all of them; of `finish_gradients` those are run that take "
        "longest, and come out 5 to 20 % too short. Backward is as a compiled graph runs it; an eager call keeps the "
        "prepared weights of its forward, which is one launch and `prepare_weights` less. The floor is each input read "
        "and each output written once at the rate of a copy. B = 32, P = 3, per stream."
    )
    head = ("kernels", "dtype", "launches", "predicted µs", "alone µs", "floor µs", "predicted / floor")
    lines = [text, "", *_table(head, cells), ""]
    kinds = list(dict.fromkeys((one["dtype"], one["precision"]) for one in part["kernels"]))
    spent = {(one["kernel"], one["dtype"], one["precision"]): one for one in part["kernels"]}

    def both(key: tuple[str, ...]) -> str:
        return f"{spent[key]['in_a_row']:.0f} ({spent[key]['microseconds']:.0f})" if key in spent else "-"

    cells = [
        [f"`{name}`", *(both((name, *kind)) for kind in kinds)]
        for name in OF_OURS
        if any(key[0] == name for key in spent)
    ]
    return [*lines, *_table(("predicted µs, in a row (alone)", *(f"{d} {p}" for d, p in kinds)), cells), ""]


def codec(result: dict[str, Any]) -> list[str]:
    times = {name: _ms(value["median"]) for name, value in result["codec"]["times"].items()}
    return [
        f"**Codec**: compressing 24 s of EnCodec latents to 16 s takes {times['latents']} ms, the way through audio "
        f"{times['audio']} ms (decode {times['audio: decode']}, stretch {times['audio: stretch']}, encode "
        f"{times['audio: encode']}): {result['codec']['ratio']:.0f} times as fast. Random codec weights, one clip.",
        "",
    ]


def render(results: Sequence[dict[str, Any]]) -> str:
    lines = [] if any(r["machine"]["kind"] == "cuda" for r in results) else [NO_GPU, ""]
    for result in results:
        lines += [f"### {_versions(result['machine'])}", ""]
        if "copy_bytes_per_s" in result:
            lines += [
                f"Device copy in the same run, read plus written: {result['copy_bytes_per_s'] / 1e9:.1f} GB/s.",
                "",
            ]
        if result.get("note"):
            lines += [result["note"], ""]
        sections = {
            "ops": operations,
            "kernels": kernels,
            "attention": attention,
            "step": step,
            "scaling": scaling,
            "static": static,
        }
        for part, section in sections.items():
            if result.get(part):
                lines += section(result)
        if "ratio" in result.get("codec", {}):
            lines += codec(result)
        for part, reason in result.get("failed", {}).items():
            lines += [f"Part {part} failed: {reason}", ""]
    return "\n".join(lines).rstrip() + "\n"


def plots(results: Sequence[dict[str, Any]], folder: Path) -> list[Path]:
    """One per axis and device: `DEVICE-scaling-B.svg`, ..."""
    from scaling import plot

    paths = []
    for result in results:
        if result.get("scaling"):
            folder.mkdir(parents=True, exist_ok=True)
            machine = result["machine"]
            paths += plot(result["scaling"], folder, _versions(machine), slug(machine["device"]))
    return paths


def _place(text: str, report: str, path: Path) -> str:
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"{path} must hold the lines {BEGIN} and {END} once, in this order")
    head, rest = text.split(BEGIN)
    return f"{head}{BEGIN}\n{report}{END}{rest.split(END)[1]}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="*", help="default: benchmarks/results/*.json")
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="draw the scaling plots there")
    parser.add_argument("--check", type=Path, metavar="FILE", help="exit 1 unless FILE holds this report")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the report into FILE, between its marks")
    options = parser.parse_args(arguments)
    results = load(options.results or sorted((HERE / "results").glob("*.json")))
    report = render(results)
    if options.plots:
        for path in plots(results, options.plots):
            print(f"drew {path}", file=sys.stderr)
    target = options.check or options.write
    if target is None:
        print(report, end="")
        return 0
    before = target.read_text()
    after = _place(before, report, target)
    if options.write:
        target.write_text(after)
    elif before != after:
        print(f"{target} does not hold the present report: run benchmarks/report.py --write {target}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
