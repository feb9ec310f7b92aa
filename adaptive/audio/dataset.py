"""Which songs make a pair, and 24 s clips of their latents.

Two layouts of a data folder, in which `train/` and `val/` are taken as they are; where there is only one of them, or
neither, what is found is split by song (seeded; a tenth of the songs, at least one, for validation):

- pairs: `NAME_input.*` with `NAME_output.*` or `NAME_target.*`, of any rate, channel count and format. Both clips of a
  pair are cut at the same place, where both files are of one length to within half a second; else each at its own.
- songs: files without such names. Each song is the input once, and another song of the same split its target (a seeded
  cyclic order); with a single song both clips come from it. Each clip is cut at its own place.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from ..errors import AdaptiveWindowError
from .cache import LatentCache
from .files import AUDIO_SUFFIXES, AudioError, find_audio
from .interface import Codec

log = logging.getLogger(__name__)

INPUT_TAG = "_input"
TARGET_TAGS = ("_output", "_target")
VALIDATION_SHARE = 0.1
ALIGNED_SECONDS = 0.5


class DataError(AdaptiveWindowError, ValueError):
    """A data folder that cannot be trained on; the message names it and what is wrong."""


class SongsTooShort(DataError):
    """Too many songs are shorter than a clip; with clips of `usable_seconds` they would serve."""

    def __init__(self, message: str, usable_seconds: float) -> None:
        super().__init__(message)
        self.usable_seconds = usable_seconds

    def __reduce__(self) -> tuple[type[SongsTooShort], tuple[str, float]]:
        return type(self), (str(self), self.usable_seconds)


@dataclass(frozen=True)
class Example:
    """An input song and its target; `aligned` where they run in parallel, so that one place in both is cut."""

    input: Path
    target: Path
    name: str
    aligned: bool = False


def find_examples(
    data: str | Path,
    *,
    shuffle_targets: bool = False,
    unity_test: bool = False,
    seed: int = 0,
    skip: Collection[Path] = (),
) -> tuple[list[Example], list[Example]]:
    """The (training, validation) examples of a data folder; the layouts are in the module's docstring.

    Two sanity modes: `unity_test` makes every target the input clip itself; `shuffle_targets` permutes the targets
    among the pairs of each split, so that nothing but chance connects them (as it is with plain songs anyway). Files in
    `skip` (see `find_bad`) count as not there. Raises `DataError` for a folder that is missing or has no audio, and for
    names that are ambiguous.
    """
    data = Path(data)
    if unity_test and shuffle_targets:
        raise DataError("unity_test and shuffle_targets exclude each other: choose one")
    if not data.is_dir():
        raise DataError(f"{str(data)!r}: {'not a folder' if data.exists() else 'no such folder'}")
    folders = {name: data / name for name in ("train", "val") if (data / name).is_dir()}
    if len(folders) == 2:
        train, val = (_examples(folders[name], seed, skip) for name in ("train", "val"))
    else:
        train, val = _split(next(iter(folders.values()), data), seed, skip)
    if unity_test:
        train, val = ([replace(e, target=e.input, aligned=True) for e in split] for split in (train, val))
    if shuffle_targets:
        train, val = (_shuffle(split, seed) for split in (train, val))
    return train, val


def _find(folder: Path, skip: Collection[Path]) -> tuple[list[Example], list[Path]]:
    """(pairs, songs) below a folder, as they are named."""
    try:
        files = find_audio(folder)
    except AudioError as error:
        raise DataError(str(error)) from error
    if not files:
        raise DataError(f"{str(folder)!r}: no audio found (searched for {' '.join(AUDIO_SUFFIXES)})")
    files = [path for path in files if path not in skip]
    inputs: dict[str, Path] = {}
    targets: dict[str, Path] = {}
    songs: list[Path] = []
    for path in files:
        stem = path.stem.lower()
        tag = next((tag for tag in (INPUT_TAG, *TARGET_TAGS) if stem.endswith(tag)), None)
        if tag is None:
            songs.append(path)
            continue
        halves = inputs if tag == INPUT_TAG else targets
        name = str(path.relative_to(folder).with_name(path.stem[: -len(tag)]))
        if name in halves:
            raise DataError(f"{str(path)!r} and {str(halves[name])!r} both claim to be the same half of one pair")
        halves[name] = path
    pairs = [Example(inputs[name], targets[name], name, aligned=True) for name in inputs if name in targets]
    lone = [path for name, path in (inputs | targets).items() if not (name in inputs and name in targets)]
    if pairs and songs:
        log.warning("%r: %d files without a pair's name are left out: %s", str(folder), len(songs), _list(songs))
        songs = []
    if lone:
        log.warning(
            "%r: %d halves of pairs without the other half are left out: %s", str(folder), len(lone), _list(lone)
        )
    if not (pairs or songs or lone):
        raise DataError(f"{str(folder)!r}: none of its {len(skip)} audio files can be used")
    if not pairs and not songs:
        raise DataError(f"{str(folder)!r}: only halves of pairs without the other half: {_list(lone)}")
    return pairs, songs


def _examples(folder: Path, seed: int, skip: Collection[Path]) -> list[Example]:
    pairs, songs = _find(folder, skip)
    return pairs or _pair_songs(songs, folder, seed)


def _split(folder: Path, seed: int, skip: Collection[Path]) -> tuple[list[Example], list[Example]]:
    """Split what one folder holds by song."""
    pairs, songs = _find(folder, skip)
    items: list[Example] | list[Path] = pairs or songs
    order = list(range(len(items)))
    random.Random(seed).shuffle(order)
    if len(items) == 1:
        log.warning("%r: a single song, so that validation uses the song that is trained on", str(folder))
        chosen, rest = {0}, {0}
    else:
        chosen = set(order[: max(1, round(VALIDATION_SHARE * len(items)))])
        rest = set(order) - chosen
    if pairs:
        return [pairs[i] for i in sorted(rest)], [pairs[i] for i in sorted(chosen)]
    train, val = ([songs[i] for i in sorted(part)] for part in (rest, chosen))
    return _pair_songs(train, folder, seed), _pair_songs(val, folder, seed)


def _pair_songs(songs: list[Path], folder: Path, seed: int) -> list[Example]:
    following = _cycle(len(songs), seed)
    names = [str(song.relative_to(folder).with_suffix("")) for song in songs]
    return [Example(songs[i], songs[j], f"{names[i]}+{names[j]}") for i, j in enumerate(following)]


def _shuffle(examples: list[Example], seed: int) -> list[Example]:
    if not examples[0].aligned:
        log.warning("shuffle_targets: songs without pairs' names are paired by chance already, nothing changes")
        return examples
    if len(examples) == 1:
        log.warning("shuffle_targets: %r is the only song of its split and keeps its target", examples[0].name)
        return examples
    others = (examples[j].target for j in _cycle(len(examples), seed))
    return [replace(example, target=other, aligned=False) for example, other in zip(examples, others, strict=True)]


def _cycle(n: int, seed: int) -> list[int]:
    """A seeded permutation of range(n) that is one cycle: without fixed points for n >= 2."""
    order = list(range(n))
    random.Random(seed).shuffle(order)
    following = [0] * n
    for here, there in zip(order, order[1:] + order[:1], strict=True):
        following[here] = there
    return following


def _list(paths: Sequence[Path], most: int = 10) -> str:
    shown = ", ".join(repr(str(path)) for path in paths[:most])
    return shown + (f" and {len(paths) - most} more" if len(paths) > most else "")


def files_of(*examples: Example) -> list[Path]:
    """The files of these examples, each once, sorted."""
    return sorted({path for example in examples for path in (example.input, example.target)})


def find_bad(
    files: Sequence[Path], cache: LatentCache, clip_frames: int, *, max_bad: float = 0.05, progress: bool = False
) -> dict[Path, str]:
    """The files that are unreadable, silent or shorter than a clip, each with its reason; encodes the others.

    They are named and counted in a warning. More of them than the share `max_bad` of all raise `DataError`, with the
    list; `SongsTooShort` where shorter clips would mend it.
    """
    if not 0 <= max_bad <= 1:
        raise ValueError(f"max_bad must be a share from 0 to 1, got {max_bad}")
    if cache.codec is None:
        raise ValueError("cache must have its codec: encode in the main process")
    lengths, unreadable = cache.encode_all(files, progress)
    bad = dict(unreadable)
    for path, length in lengths.items():
        if (reason := _too_short(length, clip_frames, cache.codec)) is not None:
            bad[path] = reason
    if bad:
        reasons = "".join(f"\n  {str(path)!r}: {reason}" for path, reason in sorted(bad.items()))
        what = f"{len(bad)} of {len(files)} audio files cannot be used:{reasons}"
        if len(bad) > max_bad * len(files):
            spared = math.floor(max_bad * len(files)) - len(unreadable)  # songs that may stay too short
            if spared >= 0 and lengths:
                usable = cache.codec.seconds(sorted(lengths.values())[min(spared, len(lengths) - 1)])
                raise SongsTooShort(what, usable)
            raise DataError(f"{what}\nThat is more than {max_bad:.0%}: mend or remove them, or raise --max-bad")
        log.warning("%s", what)
    return bad


def _too_short(frames: int, clip_frames: int, codec: Codec) -> str | None:
    if frames >= clip_frames:
        return None
    return f"lasts {codec.seconds(frames):.2f} s, shorter than a clip of {codec.seconds(clip_frames):.2f} s"


class ClipDataset(Dataset[dict[str, "torch.Tensor | str"]]):
    """Clips of `clip_frames` frames at random places of each example, `clips_per_example` per epoch.

    Item i is a dict: `input`, `target` float32 [dim, clip_frames], `input_file`, `target_file` str. The place follows
    from (seed, epoch, i) alone; with `random_crops` false the epoch does not count. All files are encoded here, on
    construction, so that loading never touches audio again. A file that is unreadable, silent or shorter than a clip
    raises `AudioError`: leave those out before, by `find_bad`.
    """

    by_index = True  # an item follows from epoch and index alone

    def __init__(
        self,
        examples: Sequence[Example],
        cache: LatentCache,
        *,
        clip_frames: int,
        clips_per_example: int = 1,
        seed: int = 0,
        random_crops: bool = True,
    ) -> None:
        if clip_frames < 1 or clips_per_example < 1:
            raise ValueError(
                f"clip_frames and clips_per_example must be at least 1, got {clip_frames} and {clips_per_example}"
            )
        if cache.codec is None:
            raise ValueError("cache must have its codec: build the data set in the main process")
        self.cache = cache
        self.clip_frames = clip_frames
        self.clips_per_example = clips_per_example
        self.seed = seed
        self.random_crops = random_crops
        self._aligned_frames = cache.codec.frames(ALIGNED_SECONDS)
        # In shared memory, so that loader workers that live on see the next epoch.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

        if not examples:
            raise ValueError("examples must be at least one, got none")
        self.examples = list(examples)
        self._frames = {path: cache.frames(path) for path in files_of(*examples)}
        for path, length in self._frames.items():
            if (reason := _too_short(length, clip_frames, cache.codec)) is not None:
                raise AudioError(path, reason)
        self._keys = {path: cache.key(path) for path in self._frames}

    def set_epoch(self, epoch: int) -> None:
        """Choose the places of this epoch's crops."""
        self._epoch.fill_(epoch)

    @property
    def fingerprint(self) -> str:
        """Names and contents of the examples and how clips are cut from them, as one line to compare and to show."""
        described = [(e.name, self._keys[e.input], self._keys[e.target], e.aligned) for e in self.examples]
        cut = (self.clip_frames, self.clips_per_example, self.random_crops)
        digest = hashlib.sha256(json.dumps([described, cut]).encode()).hexdigest()
        return f"{len(self.examples)} examples of {self.clips_per_example} clips (sha256 {digest[:16]})"

    def __len__(self) -> int:
        return len(self.examples) * self.clips_per_example

    def __getitem__(self, index: int) -> dict[str, torch.Tensor | str]:
        if not 0 <= index < len(self):
            raise IndexError(f"index must be in [0, {len(self)}), got {index}")
        example = self.examples[index % len(self.examples)]
        epoch = int(self._epoch) if self.random_crops else 0
        rng = np.random.default_rng([self.seed, epoch, index])
        starts = self._starts(example, rng)
        clips = [
            self.cache.clip(self._keys[path], start, self.clip_frames)
            for path, start in zip((example.input, example.target), starts, strict=True)
        ]
        files = {"input_file": str(example.input), "target_file": str(example.target)}
        return {"input": clips[0], "target": clips[1], **files}

    def _starts(self, example: Example, rng: np.random.Generator) -> tuple[int, int]:
        """First frames of the input and the target clip."""
        lengths = self._frames[example.input], self._frames[example.target]
        room = [length - self.clip_frames for length in lengths]
        if example.aligned and abs(lengths[0] - lengths[1]) <= self._aligned_frames:
            place = int(rng.integers(min(room) + 1))
            return place, place
        return int(rng.integers(room[0] + 1)), int(rng.integers(room[1] + 1))
