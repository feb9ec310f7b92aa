"""Songs of many kinds, computed: eight styles, tempos 70 to 160, six modes, drawn forms, drums and instruments.

What a default agent is trained on, so that it needs nobody's recordings. NumPy alone; the seed says everything.
`synthesis.py` has pairs that are one song played twice; here every song is one of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .files import write_audio
from .synthesis import NOTE_NAMES, PEAK, Audio, _Band, _reverb

SLOWEST, FASTEST = 70.0, 160.0
MODES = {
    "major": (0, 2, 4, 5, 7, 9, 11),
    "minor": (0, 2, 3, 5, 7, 8, 10),
    "dorian": (0, 2, 3, 5, 7, 9, 10),
    "mixolydian": (0, 2, 4, 5, 7, 9, 10),
    "lydian": (0, 2, 4, 6, 7, 9, 11),
    "harmonic minor": (0, 2, 3, 5, 7, 8, 11),
}
FORMS = ("AABA", "ABAB", "ABAC", "ABCB", "AABB", "ABCA")
KICKS = (
    "x.......x.......",
    "x...x...x...x...",
    "x.....x.x.......",
    "x..x..x.x..x..x.",
    "x.........x.....",
    "x..x....x.x.....",
)
SNARES = ("....x.......x...", "............x...", "........x.......", "....x..x.x..x...", "....x.......x.xx")
HATS = ("x.x.x.x.x.x.x.x.", "..x...x...x...x.", "xxxxxxxxxxxxxxxx", "x...x...x...x...", "x.xxx.xxx.xxx.xx")
FIGURES = (
    "x.......x.......",
    "x..x..x.x..x..x.",
    "x.x.x.x.x.x.x.x.",
    "x.....x.....x...",
    "x...............",
    "..x...x...x...x.",
)


@dataclass(frozen=True)
class Style:
    """How loud each part plays (0: not at all), and how long notes of the chords last, in sixteenths."""

    drums: float
    bass: float
    chords: float
    broken: float
    melody: float
    length: float
    steps: int = 16  # sixteenths of a bar


STYLES = {
    "band": Style(1.0, 0.4, 0.15, 0.0, 0.17, 4),
    "dance": Style(1.2, 0.45, 0.12, 0.1, 0.12, 2),
    "ballad": Style(0.4, 0.3, 0.13, 0.12, 0.2, 12),
    "piano": Style(0.0, 0.3, 0.12, 0.25, 0.25, 6),
    "strings": Style(0.0, 0.25, 0.2, 0.0, 0.25, 16),
    "drums": Style(1.3, 0.1, 0.0, 0.0, 0.0, 4),
    "waltz": Style(0.35, 0.35, 0.18, 0.1, 0.22, 3, 12),
    "plucked": Style(0.2, 0.2, 0.0, 0.3, 0.2, 3),
}


@dataclass(frozen=True)
class Song:
    """`audio` [N] float32, peak at most 0.85; `sections` (letter, start in seconds) in the order of playing."""

    audio: Audio
    sample_rate: int
    bpm: float
    key: str
    style: str
    sections: tuple[tuple[str, float], ...]


def synthesize_song(
    seed: int,
    *,
    seconds: float = 24.0,
    sample_rate: int = 32000,
    bpm: float | None = None,
    style: str | None = None,
    tonic: int | None = None,
    mode: str | None = None,
) -> Song:
    """Song number `seed`, round(seconds * sample_rate) samples long; what is not given is drawn.

    `tonic` is counted in semitones from C, 0 to 11; `mode` is one of `MODES`.
    """
    if not seconds > 0:
        raise ValueError(f"seconds must be positive, got {seconds}")
    if sample_rate < 8000:
        raise ValueError(f"sample_rate must be at least 8000, got {sample_rate}")
    if style is not None and style not in STYLES:
        raise ValueError(f"style must be one of {', '.join(STYLES)}, got {style!r}")
    if bpm is not None and not 20 <= bpm <= 400:
        raise ValueError(f"bpm must be from 20 to 400, got {bpm}")
    if tonic is not None and not 0 <= tonic < 12:
        raise ValueError(f"tonic must be from 0 to 11, got {tonic}")
    if mode is not None and mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
    rng = np.random.default_rng([seed, 1])  # another stream than synthesize_pair's of the same number
    drawn_bpm, drawn_style = float(rng.uniform(SLOWEST, FASTEST)), str(rng.choice(list(STYLES)))
    player = _Player(rng, seconds, sample_rate, bpm or drawn_bpm, style or drawn_style)
    player.tonic = player.tonic if tonic is None else tonic
    player.mode = mode or player.mode
    return player.song()


def write_songs(
    folder: str | Path, count: int, *, seed: int = 0, seconds: float = 24.0, sample_rate: int = 16000
) -> list[Path]:
    """Writes songs `seed`, `seed` + 1, ... as WAVs into a folder, and returns them."""
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    Path(folder).mkdir(parents=True, exist_ok=True)
    written = []
    for number in range(seed, seed + count):
        song = synthesize_song(number, seconds=seconds, sample_rate=sample_rate)
        written.append(Path(folder, f"song_{number:06d}.wav"))
        write_audio(written[-1], song.audio, sample_rate, f"synthesized, {song.style}, {song.bpm:.1f} bpm, {song.key}")
    return written


class _Player:
    def __init__(self, rng: np.random.Generator, seconds: float, sample_rate: int, bpm: float, style: str) -> None:
        self.rng, self.rate, self.bpm, self.name, self.style = rng, sample_rate, bpm, style, STYLES[style]
        self.length = round(seconds * sample_rate)
        self.step = 15 / bpm
        self.band = _Band(sample_rate, rng)
        self.tonic, self.mode = int(rng.integers(12)), str(rng.choice(list(MODES)))
        self.swing = float(rng.choice([0.0, 0.0, 0.15, 0.3]))  # of a sixteenth: how late every second one is
        self.loose = float(rng.uniform(0, 0.008))  # seconds by which players miss the beat
        self.voices = {part: _Instrument(sample_rate, rng) for part in ("bass", "chords", "melody")}
        self.dry, self.wet = np.zeros(self.length, np.float32), np.zeros(self.length, np.float32)

    def song(self) -> Song:
        bar = self.style.steps * self.step
        bars = int(np.ceil(self.length / self.rate / bar - 1e-9))
        each = int(self.rng.choice([2, 4]))
        form = str(self.rng.choice(list(FORMS)))
        parts = {letter: self._section() for letter in sorted(set(form))}
        letters = [form[number // each % len(form)] for number in range(bars)]
        for number, letter in enumerate(letters):
            self._bar(number, number % each, parts[letter])
        begins = [k for k in range(bars) if k == 0 or letters[k] != letters[k - 1]]
        sections = tuple((letters[k], k * bar) for k in begins)
        key = f"{NOTE_NAMES[self.tonic]} {self.mode}"
        return Song(self._mastered(), self.rate, self.bpm, key, self.name, sections)

    def _section(self) -> dict[str, object]:
        rng = self.rng
        walk = rng.choice([-3, -2, -1, 0, 1, 2, 3], 8)
        return {
            "roots": [int(root) for root in np.concatenate([[rng.choice([0, 0, 3, 4, 5])], rng.integers(0, 7, 3)])],
            "kick": str(rng.choice(KICKS)),
            "snare": str(rng.choice(SNARES)),
            "hat": str(rng.choice(HATS)),
            "bass": str(rng.choice(FIGURES)),
            "chords": str(rng.choice(FIGURES)),
            "melody": [None if rng.random() < 0.35 else int(step) for step in np.cumsum(walk) % 10],
            "level": rng.uniform(0.5, 1.2, 5) * (rng.random(5) > 0.12),
        }

    def _bar(self, number: int, inside: int, part: dict[str, object]) -> None:
        style, steps = self.style, self.style.steps
        level = part["level"]
        assert isinstance(level, np.ndarray)
        roots = part["roots"]
        assert isinstance(roots, list)
        root = roots[inside % 4]
        for name, gain in (("kick", 0.9), ("snare", 0.7), ("hat", 0.3)):
            for at in _hits(str(part[name]), steps):
                accent = 1.0 if at % 4 == 0 else 0.7
                self._play(self.dry, number, at, getattr(self.band, name), style.drums * level[0] * gain * accent)
        for at in _hits(str(part["bass"]), steps):
            self._note(self.dry, "bass", number, at, self._pitch(root, 36), 2.5, style.bass * level[1])
        chord = [self._pitch(root + third, 54) for third in (0, 2, 4)]
        for at in _hits(str(part["chords"]), steps):
            for midi in chord:
                self._note(self.wet, "chords", number, at, midi, style.length, style.chords * level[2])
        for at in range(0, steps, 2):
            midi = chord[(0, 1, 2, 1)[at // 2 % 4]] + 12
            self._note(self.wet, "chords", number, at, midi, 3.0, style.broken * level[3])
        melody = part["melody"]
        assert isinstance(melody, list)
        for eighth, degree in enumerate(melody[: steps // 2]):
            if degree is not None:
                gain = style.melody * level[4]
                self._note(self.wet, "melody", number, 2 * eighth, self._pitch(root + degree, 66), 3.0, gain)

    def _pitch(self, degree: int, low: int) -> int:
        octave, place = divmod(degree, 7)
        return low + (self.tonic - low) % 12 + MODES[self.mode][place] + 12 * octave

    def _note(self, into: Audio, part: str, bar: int, at: float, midi: int, steps: float, gain: float) -> None:
        if gain > 0:
            sound = self.voices[part].note(midi, round(steps * self.step, 3))
            self._play(into, bar, at, sound, gain * float(self.rng.uniform(0.8, 1.1)))

    def _play(self, into: Audio, bar: int, at: float, sound: Audio, gain: float) -> None:
        if not gain > 0:
            return
        late = self.swing * (at % 2) * self.step + self.loose * float(self.rng.standard_normal())
        first = max(0, round(((bar * self.style.steps + at) * self.step + late) * self.rate))
        part = sound[: max(0, self.length - first)]
        into[first : first + len(part)] += np.float32(gain) * part

    def _mastered(self) -> Audio:
        """Room, hiss, a tilted spectrum and a level, as recordings differ in them."""
        rng = self.rng
        room = _reverb(float(rng.uniform(0.05, 0.5)) * self.wet + 0.15 * self.dry, self.rate, rng)
        mix = np.tanh(self.dry + self.wet + room)
        spectrum = np.fft.rfft(mix)
        octaves = np.log2(np.maximum(np.fft.rfftfreq(self.length, 1 / self.rate), 50) / 1000)
        mix = np.fft.irfft(spectrum * 10 ** (float(rng.uniform(-3.5, 2.0)) * octaves / 20), self.length)
        mix /= max(float(np.abs(mix).max()), 1e-6)
        mix += 10 ** float(rng.uniform(-3.6, -2.4)) * rng.standard_normal(self.length)
        fade = min(self.length // 2, round(0.02 * self.rate))
        if fade:
            mix[:fade] *= np.linspace(0, 1, fade)
            mix[-fade:] *= np.linspace(1, 0, fade)
        level = PEAK * float(rng.uniform(0.35, 1.0))
        return (mix * (level / max(float(np.abs(mix).max()), 1e-6))).astype(np.float32)


class _Instrument:
    """A timbre drawn once: harmonics, how they fade, attack and vibrato. A note is computed once."""

    def __init__(self, sample_rate: int, rng: np.random.Generator) -> None:
        self.rate = sample_rate
        count = int(rng.integers(3, 13))
        self.gains = rng.uniform(0.3, 1.0, count) * float(rng.uniform(0.35, 0.8)) ** np.arange(count)
        self.fade = float(rng.choice([0.12, 0.3, 0.6, 1.2, 8.0]))
        self.damping = float(rng.uniform(0, 2.5))
        self.attack = float(rng.choice([0.003, 0.003, 0.02, 0.08]))
        self.vibrato = float(rng.choice([0.0, 0.0, 1e-4]))
        self.detune = float(rng.choice([0.0, 0.0, 0.003]))
        self._notes: dict[tuple[int, float], Audio] = {}

    def note(self, midi: int, seconds: float) -> Audio:
        key = midi, seconds
        if key not in self._notes:
            self._notes[key] = self._made(440 * 2 ** ((midi - 69) / 12), seconds)
        return self._notes[key]

    def _made(self, hz: float, seconds: float) -> Audio:
        t = np.arange(max(8, round(seconds * self.rate))) / self.rate
        turned = t + self.vibrato * np.sin(2 * np.pi * 5.5 * t)
        sound = np.zeros_like(t)
        for k, gain in enumerate(self.gains, 1):
            if k * hz > 0.45 * self.rate:
                break
            decay = gain * np.exp(-self.damping * (k - 1) * t)
            sound += decay * np.sin(2 * np.pi * k * hz * turned)
            if self.detune:
                sound += 0.7 * decay * np.sin(2 * np.pi * k * hz * (1 + self.detune) * turned)
        sound *= np.exp(-t / self.fade)
        for edge, duration in ((slice(None), self.attack), (slice(None, None, -1), 0.02)):
            n = min(len(sound), max(2, round(duration * self.rate)))
            sound[edge][:n] *= 0.5 - 0.5 * np.cos(np.pi * np.arange(n) / n)
        return (sound / max(float(np.abs(sound).max()), 1e-6)).astype(np.float32)


def _hits(pattern: str, steps: int) -> list[int]:
    return [at for at, mark in enumerate(pattern[:steps]) if mark == "x"]
