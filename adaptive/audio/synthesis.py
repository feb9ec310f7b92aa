"""Small pieces of music, computed: drums, bass, chords and a melody at known tempo and key. NumPy alone, seeded.

A piece has three sections (A, B, C) of different progressions, rhythm and density. The two sides of a pair are one
song played twice: same key, tempo, progressions and melodies, but other instruments and drum patterns, and the sections
in another order. So the window that fits a window of the input is there in the target, at another place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from ..storage import outputs

Audio = np.ndarray  # [N] float32

TEMPOS = (80, 90, 100, 110, 120)  # 24 s are a whole number of bars at each
NOTE_NAMES = ("C", "Db", "D", "Eb", "E", "F", "Gb", "G", "Ab", "A", "Bb", "B")
SCALES = {"major": (0, 2, 4, 5, 7, 9, 11), "minor": (0, 2, 3, 5, 7, 8, 10)}
PROGRESSIONS = {  # degrees of the scale, one chord per bar
    "major": ((0, 4, 5, 3), (0, 5, 3, 4), (3, 4, 2, 5), (5, 3, 0, 4), (0, 2, 3, 4)),
    "minor": ((0, 5, 2, 6), (0, 3, 5, 4), (5, 6, 0, 0), (3, 0, 4, 0), (0, 6, 5, 6)),
}
PEAK = 0.85
HISS = 7e-4  # -63 dB: no recording is silent between its notes

# Sixteen steps to a bar, per section: kick, snare, hat, bass, chords' figure. One list for each side of a pair.
KICKS = (
    ("x.......x.......", "x...x...x...x...", "x.........x....."),
    ("x.....x.........", "x..x..x.x..x..x.", "x..............."),
)
SNARES = (
    ("................", "....x.......x...", "........x......."),
    ("............x...", "....x..x.x..x...", "....x.......x..."),
)
HATS = (
    ("..x...x...x...x.", "x.x.x.x.x.x.x.xx", "x...x...x...x..."),
    ("x.......x.......", "xxxxxxxxxxxxxxxx", "..x...x...x...x."),
)
BASSES = (
    ("x.......x.......", "x..x..x.x..x..x.", "x..............."),
    ("x.....x.........", "x.x.x.x.x.x.x.x.", "x.......x...x..."),
)


@dataclass(frozen=True)
class Piece:
    """A pair: `input` and `target` [N] float32, peaks at most 0.85, both at `bpm` in `key`.

    `input_sections` and `target_sections`: (letter, start in seconds) in the order of playing.
    """

    input: Audio
    target: Audio
    sample_rate: int
    bpm: int
    key: str
    input_sections: tuple[tuple[str, float], ...]
    target_sections: tuple[tuple[str, float], ...]


def synthesize_pair(seed: int, *, seconds: float = 24.0, sample_rate: int = 32000) -> Piece:
    """The pair of pieces number `seed`, each round(seconds * sample_rate) samples long."""
    if not seconds > 0:
        raise ValueError(f"seconds must be positive, got {seconds}")
    if sample_rate < 8000:
        raise ValueError(f"sample_rate must be at least 8000, got {sample_rate}")
    rng = np.random.default_rng(seed)
    bpm = int(rng.choice(TEMPOS))
    tonic, mode = int(rng.integers(12)), str(rng.choice(list(SCALES)))
    progressions = rng.permutation(PROGRESSIONS[mode])[:3]
    song = {
        letter: _Section(index, tuple(int(degree) for degree in progressions[index]), _melody(rng))
        for index, letter in enumerate("ABC")
    }
    orders = tuple("ABC"), tuple(str(rng.choice(["BCA", "CAB", "BAC", "CBA"])))
    first, second = (
        _perform(song, order, side, bpm, tonic, mode, seconds, sample_rate, rng) for side, order in enumerate(orders)
    )
    bars = _bars(seconds, bpm)
    starts = [tuple((letter, first * 240 / bpm) for letter, first, _ in _plan(order, bars)) for order in orders]
    return Piece(first, second, sample_rate, bpm, f"{NOTE_NAMES[tonic]} {mode}", starts[0], starts[1])


def synthesize_drums(seed: int, bpm: float, *, seconds: float = 24.0, sample_rate: int = 32000) -> Audio:
    """A drum loop [N] float32 in any tempo: one bar of kick, snare and hat, and their sounds, drawn by `seed`."""
    rng = np.random.default_rng(seed)
    band = _Band(sample_rate, rng)
    parts = []
    for patterns, sound, gain in ((KICKS, band.kick, 0.9), (SNARES, band.snare, 0.7), (HATS, band.hat, 0.3)):
        played = [pattern for side in patterns for pattern in side if "x" in pattern]
        parts.append((_hits(played[rng.integers(len(played))]), sound, gain))
    loop = np.zeros(round(seconds * sample_rate), np.float32)
    for bar in range(_bars(seconds, bpm)):
        for hits, sound, gain in parts:
            for at in hits:
                first = round((bar * 16 + at) * 15 / bpm * sample_rate)
                part = sound[: max(0, len(loop) - first)]
                loop[first : first + len(part)] += gain * (1 if at % 4 == 0 else 0.75) * part
    return PEAK * np.tanh(loop + np.float32(HISS) * rng.standard_normal(len(loop), np.float32))


def demo_piece(number: int, *, seed: int = 0, seconds: float = 24.0, sample_rate: int = 32000) -> Piece:
    """Pair `number` of the set that `write_demo_set` writes with this seed; the validation pairs come last."""
    return synthesize_pair(seed * 10_000 + number, seconds=seconds, sample_rate=sample_rate)


def write_demo_set(
    folder: str | Path,
    *,
    pairs: int = 4,
    val: int = 1,
    seed: int = 0,
    seconds: float = 24.0,
    sample_rate: int = 32000,
) -> list[Path]:
    """Write `pairs` training and `val` validation pairs into `folder`/train and `folder`/val.

    Files are named `song_00_input.wav`, `song_00_target.wav`; returns them in the order of writing. Raises `UsageError`
    where one of them is there and adaptive-window did not write it.
    """
    from .files import write_audio  # needs soundfile, which synthesis itself does not

    if pairs < 1 or val < 0:
        raise ValueError(f"pairs must be at least 1 and val at least 0, got {pairs} and {val}")
    places = [Path(folder, "train" if number < pairs else "val") for number in range(pairs + val)]
    for place in places:
        place.mkdir(parents=True, exist_ok=True)
    names = [f"song_{number:02d}_{half}.wav" for number in range(pairs + val) for half in ("input", "target")]
    paths = [places[k // 2] / name for k, name in enumerate(names)]
    outputs.claim(*paths, advice="name another folder")
    for number in range(pairs + val):
        piece = demo_piece(number, seed=seed, seconds=seconds, sample_rate=sample_rate)
        comment = f"synthesized, {piece.bpm} bpm, {piece.key}"
        for path, audio in zip(paths[2 * number : 2 * number + 2], (piece.input, piece.target), strict=True):
            write_audio(path, audio, sample_rate, comment, into=partial(outputs.writing, song=True))
    return paths


@dataclass(frozen=True)
class _Section:
    index: int
    progression: tuple[int, ...]
    melody: tuple[int | None, ...]  # scale steps above the chord's root for 16 eighths (two bars); None is a rest


def _melody(rng: np.random.Generator) -> tuple[int | None, ...]:
    """Two bars: chord tones on the beats, steps between, some rests."""
    notes: list[int | None] = []
    step = int(rng.choice([0, 2, 4]))
    for eighth in range(16):
        on_beat = eighth % 2 == 0
        step = int(rng.choice([0, 2, 4, 7])) if on_beat else step + int(rng.choice([-1, 1]))
        notes.append(None if rng.random() < (0.2 if on_beat else 0.55) else step)
    return tuple(notes)


def _bars(seconds: float, bpm: float) -> int:
    return int(np.ceil(seconds * bpm / 240 - 1e-9))


def _plan(order: tuple[str, ...], bars: int) -> list[tuple[str, int, int]]:
    """(letter, first bar, bar after the last) of each section; those without a bar are left out."""
    edges = [round(bars * k / len(order)) for k in range(len(order) + 1)]
    spans = zip(order, edges[:-1], edges[1:], strict=True)
    return [(letter, first, last) for letter, first, last in spans if first < last]


def _perform(
    song: dict[str, _Section],
    order: tuple[str, ...],
    side: int,
    bpm: int,
    tonic: int,
    mode: str,
    seconds: float,
    sample_rate: int,
    rng: np.random.Generator,
) -> Audio:
    """One side of the pair: the song's sections in this order, on this side's instruments."""
    step = 15 / bpm  # a sixteenth in seconds
    length = round(seconds * sample_rate)
    dry, wet = np.zeros(length, np.float32), np.zeros(length, np.float32)  # wet has more of the room
    band = _Band(sample_rate, rng)
    scale = SCALES[mode]

    def pitch(degree: int, low: int) -> int:
        """MIDI number of a scale degree, counted from the tonic's octave at or above `low`."""
        octave, place = divmod(degree, 7)
        return low + (tonic - low) % 12 + scale[place] + 12 * octave

    def play(into: Audio, bar: int, at: float, sound: Audio, gain: float) -> None:
        first = round((bar * 16 + at) * step * sample_rate)
        part = sound[: max(0, length - first)]
        into[first : first + len(part)] += gain * part

    for letter, first, last in _plan(order, _bars(seconds, bpm)):
        section = song[letter]
        lively = section.index == 1
        for bar in range(first, last):
            root = section.progression[(bar - first) % 4]
            for pattern, sound, gain in (
                (KICKS, band.kick, 0.9),
                (SNARES, band.snare, 0.7),
                (HATS, band.hat, 0.3),
            ):
                for at in _hits(pattern[side][section.index]):
                    play(dry, bar, at, sound, gain * (1 if at % 4 == 0 else 0.75))
            for at in _hits(BASSES[side][section.index]):
                play(dry, bar, at, band.note("bass", pitch(root, 36), 2.5 * step), 0.42)
            chord = [pitch(root + third, 55) for third in (0, 2, 4)]
            if lively and side == 1:  # broken chords
                for at in range(0, 16, 2):
                    play(wet, bar, at, band.note("keys", chord[(0, 1, 2, 1)[at // 2 % 4]] + 12, 3 * step), 0.2)
            elif lively:  # struck chords
                for at in (0, 6, 10):
                    for midi in chord:
                        play(wet, bar, at, band.note("keys", midi, 4 * step), 0.15)
            else:
                for midi in chord:
                    play(wet, bar, 0, band.note("pad", midi, 16 * step), 0.1)
            half = section.melody[8 * ((bar - first) % 2) :][:8]
            for eighth, degree in enumerate(half):
                if degree is not None and section.index > 0:
                    voice = "lead" if side == 0 else "bell"
                    play(wet, bar, 2 * eighth, band.note(voice, pitch(root + degree, 67), 3 * step), 0.16)
    room = _reverb(0.25 * wet + 0.2 * dry, sample_rate, rng)
    mix = np.tanh(dry + wet + room + np.float32(HISS) * rng.standard_normal(length, np.float32))
    fade = min(length // 2, round(0.02 * sample_rate))
    if fade:
        mix[:fade] *= np.linspace(0, 1, fade, dtype=np.float32)
        mix[-fade:] *= np.linspace(1, 0, fade, dtype=np.float32)
    return mix * np.float32(PEAK / max(float(np.abs(mix).max()), 1e-6))


def _hits(pattern: str) -> list[int]:
    return [at for at, mark in enumerate(pattern) if mark == "x"]


class _Band:
    """The instruments. A note is computed once and played many times."""

    def __init__(self, sample_rate: int, rng: np.random.Generator) -> None:
        self.sample_rate = sample_rate
        self._notes: dict[tuple[str, int, float], Audio] = {}
        noise = rng.standard_normal(sample_rate).astype(np.float32)
        t = self._time(0.35)
        sweep = 2 * np.pi * (48 * t + 90 * 0.035 * (1 - np.exp(-t / 0.035)))  # 138 Hz falling to 48 Hz
        self.kick = self._drum(np.sin(sweep) * np.exp(-t / 0.11), 0.001)
        t = self._time(0.25)
        rattle = np.diff(noise[: len(t) + 1]) * np.exp(-t / 0.06)
        self.snare = self._drum(0.5 * rattle + np.sin(2 * np.pi * 185 * t) * np.exp(-t / 0.04), 0.001)
        t = self._time(0.08)
        self.hat = self._drum(np.diff(noise[-len(t) - 2 :], 2) * np.exp(-t / 0.02), 0.0005)

    def _drum(self, sound: np.ndarray, attack: float) -> Audio:
        shaped = self._shape(sound, attack)
        return shaped / np.abs(shaped).max()

    def note(self, voice: str, midi: int, seconds: float) -> Audio:
        key = (voice, midi, seconds)
        if key not in self._notes:
            self._notes[key] = _VOICES[voice](self, 440 * 2 ** ((midi - 69) / 12), seconds)
        return self._notes[key]

    def bass(self, hz: float, seconds: float) -> Audio:
        t = self._time(seconds)
        return self._shape(self._harmonics(hz, t, 8, 0.6, 3.0) * np.exp(-t / 0.5), 0.004)

    def keys(self, hz: float, seconds: float) -> Audio:
        t = self._time(seconds)
        return self._shape(self._harmonics(hz, t, 10, 0.55, 2.0) * np.exp(-t / 0.6), 0.003)

    def bell(self, hz: float, seconds: float) -> Audio:
        t = self._time(seconds)
        modulator = 2.0 * np.exp(-t / 0.15) * np.sin(2 * np.pi * 3.01 * hz * t)
        return self._shape(np.sin(2 * np.pi * hz * t + modulator) * np.exp(-t / 0.4), 0.003)

    def lead(self, hz: float, seconds: float) -> Audio:
        t = self._time(seconds)
        vibrato = 1e-4 * np.sin(2 * np.pi * 5.5 * t)  # in seconds: 6 cents to either side, for every harmonic
        return self._shape(self._harmonics(hz, t + vibrato, 7, 0.5, 0.3), 0.02, 0.06)

    def pad(self, hz: float, seconds: float) -> Audio:
        t = self._time(seconds)
        both = self._harmonics(hz * 1.002, t, 6, 0.5, 0.0) + self._harmonics(hz / 1.002, t, 6, 0.5, 0.0)
        return self._shape(both, 0.25, 0.2)

    def _time(self, seconds: float) -> np.ndarray:
        return np.arange(round(seconds * self.sample_rate)) / self.sample_rate

    def _harmonics(self, hz: float, t: np.ndarray, most: int, tilt: float, damping: float) -> np.ndarray:
        """sum over k of tilt^(k-1) e^(-damping (k-1) t) sin(2 pi k hz t), below 45 % of the sample rate.

        By sin(k a) = 2 cos(a) sin((k-1) a) - sin((k-2) a): one sine and one cosine per note.
        """
        count = max(1, min(most, int(0.45 * self.sample_rate / hz)))
        angle = 2 * np.pi * hz * t
        before, now, turn = np.zeros_like(t), np.sin(angle), 2 * np.cos(angle)
        total, gain, fade = now.copy(), np.ones_like(t), tilt * np.exp(-damping * t)
        for _ in range(1, count):
            before, now = now, turn * now - before
            gain *= fade
            total += gain * now
        return total

    def _shape(self, sound: np.ndarray, attack: float, release: float = 0.02) -> Audio:
        """Raised-cosine ends (seconds), so that nothing starts or stops with a click."""
        for edge, duration in ((slice(None), attack), (slice(None, None, -1), release)):
            n = min(len(sound), max(2, round(duration * self.sample_rate)))
            sound[edge][:n] *= 0.5 - 0.5 * np.cos(np.pi * np.arange(n) / n)
        return sound.astype(np.float32)


_VOICES: dict[str, Callable[[_Band, float, float], Audio]] = {
    "bass": _Band.bass,
    "keys": _Band.keys,
    "bell": _Band.bell,
    "lead": _Band.lead,
    "pad": _Band.pad,
}


def _reverb(sound: Audio, sample_rate: int, rng: np.random.Generator) -> Audio:
    """Convolution with 0.9 s of decaying noise of unit energy, 15 ms late."""
    t = np.arange(round(0.9 * sample_rate)) / sample_rate
    response = rng.standard_normal(len(t)) * np.exp(-t / 0.22) * (t > 0.015)
    response /= np.sqrt((response**2).sum())
    size = 1 << (len(sound) + len(t) - 1).bit_length()
    spectrum = np.fft.rfft(sound, size) * np.fft.rfft(response.astype(np.float32), size)
    return np.fft.irfft(spectrum, size)[: len(sound)].astype(np.float32)
