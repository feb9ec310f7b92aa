"""Damaged audio files read by the shipped reader: `python -m fuzz_audio --cases 10000 --seed 0`.

Each case is a small file of one of the formats in `ORIGINALS`, damaged: bits flipped, bytes overwritten (extreme values
in the header among them), cut, a stretch removed, repeated or zeroed, or two files spliced. Reading has to end within
`SECONDS`, in finite samples or in `AudioError`.

libsndfile is C: what it does wrong can kill its process. The cases therefore run in a child that notes the case it is
at; where the child dies or hangs, the case is kept and a new child goes on behind it.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soundfile

RATE = 8000
SECONDS = 10
ORIGINALS: tuple[tuple[str, str, str], ...] = (
    ("wav", "WAV", "PCM_16"),
    ("wav", "WAV", "PCM_U8"),
    ("wav", "WAV", "PCM_24"),
    ("wav", "WAV", "FLOAT"),
    ("wav", "WAVEX", "DOUBLE"),
    ("wav", "WAV", "ULAW"),
    ("wav", "WAV", "IMA_ADPCM"),
    ("wav", "WAV", "MS_ADPCM"),
    ("wav", "WAV", "GSM610"),
    ("wav", "WAV", "G721_32"),
    ("wav", "WAV", "NMS_ADPCM_16"),
    ("flac", "FLAC", "PCM_16"),
    ("flac", "FLAC", "PCM_24"),
    ("ogg", "OGG", "VORBIS"),
    ("opus", "OGG", "OPUS"),
    ("mp3", "MP3", "MPEG_LAYER_III"),
    ("aiff", "AIFF", "PCM_16"),
    ("aiff", "AIFF", "IMA_ADPCM"),
    ("aiff", "AIFF", "DWVW_16"),
    ("caf", "CAF", "PCM_16"),
    ("caf", "CAF", "ALAC_16"),
    ("au", "AU", "PCM_16"),
    ("au", "AU", "G723_24"),
    ("w64", "W64", "PCM_16"),
    ("rf64", "RF64", "PCM_24"),
)
MONO = {"GSM610", "G721_32", "NMS_ADPCM_16", "G723_24", "DWVW_16"}  # libsndfile writes no other


def originals() -> list[tuple[str, bytes]]:
    """(suffix, bytes) of a 0.2 s file of each format, and one of 1.5 s for the compressed ones, which have pages."""
    files = []
    for suffix, kind, subtype in ORIGINALS:
        for seconds in (0.2, 1.5) if suffix in ("flac", "ogg", "opus", "mp3") else (0.2,):
            t = np.arange(round(seconds * RATE)) / RATE
            sound = 0.4 * np.stack([np.sin(2 * np.pi * hz * t * (1 + t)) for hz in (220, 600)], axis=1)
            file = io.BytesIO()
            soundfile.write(file, sound[:, :1] if subtype in MONO else sound, RATE, format=kind, subtype=subtype)
            files.append((suffix, file.getvalue()))
    return files


EXTREMES = [bytes(4), b"\xff" * 4, b"\xff\xff\xff\x7f", b"\x7f\xff\xff\xff", b"\x00\x00\x00\x80", b"\x01\x00\x00\x00"]


def mutant(files: list[tuple[str, bytes]], case: int) -> tuple[str, bytes]:
    """(suffix, bytes) of a case; both follow from its number."""
    rng = np.random.default_rng(case)
    suffix, original = files[int(rng.integers(len(files)))]
    data = bytearray(original)

    def place() -> int:  # most damage goes where the structure is
        return int(rng.integers(min(len(data), 200) if rng.random() < 0.6 else len(data)))

    for _ in range(int(rng.integers(1, 4))):
        kind = rng.choice(["bits", "bytes", "extreme", "cut", "remove", "repeat", "zero", "splice"])
        at = place()
        length = int(rng.integers(1, max(2, len(data) // 4)))
        if kind == "bits":
            for _ in range(int(rng.integers(1, 20))):
                data[place()] ^= 1 << int(rng.integers(8))
        elif kind == "bytes":
            for _ in range(int(rng.integers(1, 20))):
                data[place()] = int(rng.integers(256))
        elif kind == "extreme":
            data[at : at + 4] = EXTREMES[int(rng.integers(len(EXTREMES)))]
        elif kind == "cut":
            del data[max(1, int(rng.integers(len(data)))) :]
        elif kind == "remove":
            del data[at : at + length]
        elif kind == "repeat":
            data[at:at] = data[at : at + length]
        elif kind == "zero":
            data[at : at + length] = bytes(len(data[at : at + length]))
        else:
            _, other = files[int(rng.integers(len(files)))]
            data[at:] = other[int(rng.integers(len(other))) :]
        if not data:
            data = bytearray(b"\x00")
    return suffix, bytes(data)


def read_cases(cases: range, folder: Path, seconds: int) -> None:
    """The child: reads every case; one line of JSON for each, before (its number) and after (what came of it)."""
    from adaptive_window.audio.files import AudioError, stream_audio

    files = originals()
    before = peak_megabytes()
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # kills where a Python handler would wait for libsndfile
    for case in cases:
        suffix, data = mutant(files, case)
        path = folder / f"case.{suffix}"
        path.write_bytes(data)
        print(json.dumps({"case": case}), flush=True)
        signal.alarm(seconds)
        try:
            samples = 0
            for block in stream_audio(path, 16000):
                if not np.isfinite(block).all():
                    raise ArithmeticError("samples that are not finite")
                samples += len(block)
            outcome = "read"
        except AudioError as error:
            outcome = re.sub(r"[\d.]+", "#", re.split(r"[(:]", error.reason)[0]).strip()
            if str(path) not in str(error):
                outcome = f"error: does not name the file: {error}"
        except Exception as error:  # anything else is what is searched for
            outcome = f"error: {type(error).__name__}: {error}"
        signal.alarm(0)
        print(json.dumps({"outcome": outcome, "megabytes": peak_megabytes() - before}), flush=True)


def peak_megabytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


@dataclass
class Findings:
    """What came of the cases: how often each outcome, the most memory that reading added, each case that is a bug."""

    outcomes: Counter[str] = field(default_factory=Counter)
    megabytes: int = 0
    bugs: list[tuple[int, str]] = field(default_factory=list)


def fuzz(
    cases: range, environment: dict[str, str] | None = None, *, seconds: int = SECONDS, block: int = 1000
) -> Findings:
    """Reads all cases in child processes, each within `seconds`."""
    found = Findings()
    following = cases.start
    with tempfile.TemporaryDirectory() as folder:
        while following < cases.stop:
            last = min(following + block, cases.stop)
            command = [sys.executable, "-m", "fuzz_audio", "--child", str(following), str(last), folder, str(seconds)]
            # Files, not pipes: what the child said before it died is there. libmpg123 talks to stderr.
            with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
                code = subprocess.run(command, stdout=out, stderr=err, env=environment).returncode
                out.seek(0), err.seek(0)
                lines = [json.loads(line) for line in out if line.startswith("{")]
            for line in lines:
                if "case" in line:
                    following = line["case"] + 1
                else:
                    found.outcomes[line["outcome"]] += 1
                    found.megabytes = max(found.megabytes, line["megabytes"])
                    if line["outcome"].startswith("error"):
                        found.bugs.append((following - 1, line["outcome"]))
            if code:
                if not lines:
                    raise RuntimeError(f"the child ended with {code} before its first case: {err.read()}")
                name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
                found.bugs.append((following - 1, f"{name}: no end within {seconds} s" if name == "SIGALRM" else name))
            if sys.stderr.isatty():
                print(f"\r{following - cases.start} files", end="", file=sys.stderr)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0, help="the first case's number; the others count on from it")
    parser.add_argument("--child", nargs=4, metavar=("FIRST", "END", "FOLDER", "SECONDS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        first, end, folder, seconds = options.child
        read_cases(range(int(first), int(end)), Path(folder), int(seconds))
        return
    began = time.monotonic()
    found = fuzz(range(options.seed, options.seed + options.cases), dict(os.environ))
    took = time.monotonic() - began
    print(f"{options.cases} files from case {options.seed}: {len(found.bugs)} bugs, {took:.0f} s, ", end="")
    print(f"reading took at most {found.megabytes} MB")
    for outcome, count in found.outcomes.most_common():
        print(f"  {count:6d}  {outcome}")
    for case, what in found.bugs:
        print(f"  BUG case {case}: {what}")
    sys.exit(bool(found.bugs))


if __name__ == "__main__":
    main()
