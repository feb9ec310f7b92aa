"""What a visitor's song is: readable, of a length that fits, not silent; and its waveform to look at."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from ..audio.files import AudioError, stream_audio

MOST_BYTES = 100 * 2**20
MOST_SECONDS = 20 * 60
SILENT = 1e-4  # a peak below: -80 dB
COLUMNS = 600  # of the waveform


class Refused(ValueError):
    """A song, or a wish, that cannot be met; the message is the sentence that the visitor reads."""


@dataclass(frozen=True)
class Song:
    """An upload that can be composed from. `peaks`: the loudest sample of each of at most 600 equal stretches."""

    path: Path
    name: str
    seconds: float
    peaks: tuple[float, ...]


def read_song(path: Path, sample_rate: int, least_seconds: float) -> Song:
    """Reads a file once, as a whole, in bounded memory.

    Raises:
        Refused: what is wrong with it, without the folder in which it lies.
    """
    name = path.name
    if path.stat().st_size > MOST_BYTES:
        raise Refused(f"{name} has more than {MOST_BYTES >> 20} MB. Cut it, or convert it to MP3, FLAC or Ogg.")
    try:
        peaks, seconds = _peaks(_bounded(path, name, sample_rate), sample_rate)
    except AudioError as error:
        raise Refused(in_words(name, error)) from error
    if seconds < least_seconds:
        raise Refused(f"{name} is {seconds:.1f} s long; at least {least_seconds:g} s are needed.")
    if max(peaks) < SILENT:
        raise Refused(f"{name} is silent.")
    return Song(path, name, seconds, peaks)


def in_words(name: str, error: AudioError) -> str:
    """The sentence for an error of the reader: it names the file, never its folder."""
    if error.reason == "no audio that libsndfile can read":
        return f"{name} is no audio that can be read here. WAV, FLAC, MP3, Ogg, Opus and AIFF can."
    return f"{name} cannot be used: {error.reason}."


def _bounded(path: Path, name: str, sample_rate: int) -> Iterator[np.ndarray]:
    """The blocks of a song, unless there are too many: by its header, and by count where the header says otherwise."""
    too_long = Refused(f"{name} is longer than {MOST_SECONDS // 60} minutes. Cut it first.")
    if _claimed_seconds(path) > MOST_SECONDS:
        raise too_long
    done = 0
    for block in stream_audio(path, sample_rate):
        done += len(block)
        if done > MOST_SECONDS * sample_rate:
            raise too_long
        yield block


def _claimed_seconds(path: Path) -> float:
    """What the header says; 0 where it cannot be read, which `stream_audio` explains."""
    try:
        info = soundfile.info(str(path))
    except (soundfile.SoundFileError, TypeError, ValueError):
        return 0.0
    return info.frames / max(1, info.samplerate)


def _peaks(blocks: Iterator[np.ndarray], sample_rate: int) -> tuple[tuple[float, ...], float]:
    """At most `COLUMNS` peaks, and the length in seconds."""
    bucket = sample_rate // 20
    found, rest, samples = [], np.empty(0, np.float32), 0
    for block in blocks:
        samples += len(block)
        both = np.abs(np.concatenate((rest, block)))
        whole = len(both) // bucket * bucket
        found.append(both[:whole].reshape(-1, bucket).max(1))
        rest = both[whole:]
    if len(rest):
        found.append(rest.max(keepdims=True))
    fine = np.concatenate(found) if found else np.zeros(1, np.float32)
    edges = np.linspace(0, len(fine), min(COLUMNS, len(fine)) + 1).astype(int)
    return tuple(float(value) for value in np.maximum.reduceat(fine, edges[:-1])), samples / sample_rate
