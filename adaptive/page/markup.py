"""The HTML of results: every text from outside is escaped, every file is a link into the uploads' folder."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from .composing import LABELS, Composed
from .matching import Matched


def url(path: Path) -> str:
    """Relative to the page, so that it holds behind a proxy's prefix."""
    return f"gradio_api/file={quote(str(path))}"


def player(path: Path, label: str) -> str:
    name = html.escape(label)
    return (
        f'<figure><figcaption>{name}</figcaption><audio controls preload="metadata" aria-label="{name}" '
        f'src="{html.escape(url(path))}"></audio></figure>'
    )


def players(heard: Sequence[tuple[Path, str]]) -> str:
    return f'<div class="heard">{"".join(player(path, label) for path, label in heard)}</div>'


def downloads(files: Sequence[tuple[Path, str]]) -> str:
    links = (
        f'<a class="download" href="{html.escape(url(path))}" download="{html.escape(path.name)}">'
        f"{html.escape(text)}</a>"
        for path, text in files
    )
    return f'<p class="files">{"".join(links)}</p>'


def problem(sentence: str) -> str:
    return f'<p class="problem" role="alert">{html.escape(sentence)}</p>'


def said(sentence: str) -> str:
    return f'<p role="status">{html.escape(sentence)}</p>'


def table(head: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> str:
    cells = "".join(f'<th scope="col">{html.escape(text)}</th>' for text in head)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(text)}</td>" for text in row) + "</tr>" for row in rows)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{html.escape(caption)}"><table>'
        f"<caption>{html.escape(caption)}</caption><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def composed_pattern(composed: Composed) -> str:
    """The pattern, what can be taken home, and the two clips to compare it with."""
    report = composed.report
    heard = "the mean of all pairs" if report["picked_pair"] is None else f"pair {report['picked_pair']}"
    length = f"{report['seconds']:.2f} s"
    text = f"The pattern: {heard}, {length}, peak {report['peak']:.3f}, RMS {report['rms']:.3f}."
    songs = [
        (path, f"{label}, {report['clip_seconds']:g} s from {at:.2f} s on")
        for path, label, at in zip(composed.clips, LABELS, report["clip_at"].values(), strict=True)
    ]
    files = [(composed.pattern, "Download WAV"), (composed.pattern.with_suffix(".json"), "Download JSON")]
    return (
        f'<div class="results" id="pattern">{said(text)}{players([(composed.pattern, "Pattern"), *songs])}'
        f"{downloads(files)}</div>"
    )


def composed_table(composed: Composed) -> str:
    begins = composed.report["clip_at"]
    rows = []
    for number, pair in enumerate(composed.report["pairs"]):
        row = [str(number)]
        for stream in ("input", "target"):
            start, end = (begins[stream] + pair[f"{edge}_{stream}_s"] for edge in ("start", "end"))
            row += [f"{start:.2f}", f"{end:.2f}", f"{pair[f'ratio_{stream}']:.3f}"]
        rows.append([*row, f"{pair['strength']:.2f}"])
    head = ["pair", "A from (s)", "A to (s)", "A ×", "B from (s)", "B to (s)", "B ×", "strength"]
    return f'<div class="results">{table(head, rows, "Windows, in seconds of the songs")}</div>'


def window_players(windows: Sequence[dict[str, Path]]) -> str:
    """Every window to hear: as recorded, and compressed to the pattern's length."""
    text = ""
    for number, files in enumerate(windows):
        heard = [
            (files[f"{kind}_{letter}"], f"{label}, {words}")
            for letter, label in zip("ab", LABELS, strict=True)
            for kind, words in (("cut", "as cut"), ("compressed", "compressed"))
        ]
        text += f"<h3>Pair {number}</h3>{players(heard)}"
    return f'<div class="results">{text}</div>'


def matched(found: Matched) -> str:
    """The verdict in words, the windows to hear, and the files."""
    report = found.report
    places: list[dict[str, Any]] = [report["input"], report["target"]]
    where = (
        f"{LABELS[0]} from {places[0]['start_s']:.2f} s to {places[0]['end_s']:.2f} s, which is "
        f"{places[0]['ratio']:.3f} times as long as {LABELS[1]} from {places[1]['start_s']:.2f} s to "
        f"{places[1]['end_s']:.2f} s"
    )
    score = f"score {report['score']:.3f}, a match from {report['threshold']:.3f}"
    if report["verdict"] == "match":
        text = said(f"{LABELS[1]} occurs in {LABELS[0]}: {where} ({score}).")
    else:
        text = said(f"{LABELS[1]} does not occur in what was searched of {LABELS[0]}. Nearest: {where} ({score}).")
    if found.sound is not None:
        window = "the matched window"
        by_name = {path.name: path for path in found.files}
        text += players(
            [
                (found.sound, "A, then B, then both at once"),
                (by_name["cut_input.wav"], f"{LABELS[0]}, {window} as cut"),
                (by_name["cut_target.wav"], f"{LABELS[1]}, {window} as cut"),
            ]
        )
    return f'<div class="results">{text}{downloads([(path, path.name) for path in found.files])}</div>'
