"""Audio files in and out, by libsndfile (soundfile) and soxr. Nothing unreadable ever turns into zeros.

Reading runs in this process, though libsndfile is C: of 20,000 damaged files (`make fuzz`), half of them read under
glibc's heap checks, none made it crash or hang, and a process for each file would cost more than it guards.
"""

from __future__ import annotations

import logging
import math
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import soundfile
import soxr
import torch
from torch import Tensor

from ..errors import AdaptiveWindowError
from ..storage import outputs
from ..storage.durable import replacing
from .parts import PartFile, parts_of

log = logging.getLogger(__name__)

AUDIO_SUFFIXES: tuple[str, ...] = (
    *(".aif", ".aifc", ".aiff", ".au", ".caf", ".flac", ".mp3", ".oga", ".ogg", ".opus", ".rf64", ".snd", ".w64"),
    *(".wav", ".wave"),
)
"""What `find_audio` looks for: the self-describing formats that libsndfile 1.2 reads."""

OTHER_SUFFIXES: tuple[str, ...] = (
    *(".3gp", ".aac", ".ac3", ".alac", ".amr", ".ape", ".asf", ".avi", ".dff", ".dsf", ".dts", ".eac3", ".flv", ".m4a"),
    *(".m4b", ".m4p", ".m4r", ".m4v", ".mka", ".mkv", ".mov", ".mp1", ".mp2", ".mp4", ".mpc", ".mpeg", ".mpg", ".ra"),
    *(".rm", ".shn", ".spx", ".tak", ".tta", ".weba", ".webm", ".wma", ".wmv", ".wv"),
)
"""Files with sound in them that are not read, so that a folder's are at least named."""
_CONVERT = "convert {} once, as with ffmpeg -i SONG{} SONG.flac"

_BLOCK_SECONDS = 10.0
_SKIP_SECONDS = 30.0
_BLOCK_VALUES = 1 << 22  # of all channels together; a damaged header can claim 1024 of them
_RATES = range(1000, 768_001)
_SEEKABLE = {"AIFF", "AU", "CAF", "FLAC", "RF64", "W64", "WAV", "WAVEX"}  # to the sample, unless compressed with loss
# libsndfile quietly cuts a length that reaches beyond the file's end, and notes it in its log in this form.
_OVERLONG = re.compile(r"^\s*(?:data|SSND|Data Size|riff)\s*: (\d+) \(should be (\d+)\)", re.MULTILINE)

# And where it meets what is no chunk behind the audio, it stops, and notes that.
_LEFT_OVER = re.compile(r"Unknown chunk marker(?: \(\w+\))? at position (\d+).*Exiting parser", re.DOTALL)
_LEAST_LEFT_OVER = 1 << 14  # bytes; fewer are padding or a tag


class AudioError(AdaptiveWindowError, ValueError):
    """A file that is no usable audio; the message names it and what is wrong."""

    def __init__(self, path: str | os.PathLike[str], reason: str) -> None:
        super().__init__(f"{os.fspath(path)!r}: {reason}")
        self.path, self.reason = Path(path), reason

    def __reduce__(self) -> tuple[type[AudioError], tuple[Path, str]]:
        return type(self), (self.path, self.reason)  # so that it comes whole out of a loader's worker process


def check_readable(path: str | os.PathLike[str]) -> os.stat_result:
    """The file's `os.stat`; raises `AudioError` unless it is a regular file, not empty, that may be read.

    A pipe or a device is refused before it is opened: opening one can block for ever.
    """
    try:
        info = os.stat(path)
    except FileNotFoundError as error:
        raise AudioError(path, "no such file") from error
    except (OSError, ValueError) as error:  # a loop of links, a null byte in the name, ...
        raise AudioError(path, f"cannot be opened ({getattr(error, 'strerror', None) or error})") from error
    if not stat.S_ISREG(info.st_mode):
        raise AudioError(path, "not a regular file")
    if info.st_size == 0:
        raise AudioError(path, "an empty file")
    if not os.access(path, os.R_OK, effective_ids=os.access in os.supports_effective_ids):
        raise AudioError(path, "no permission to read it")
    return info


def stream_audio(path: str | os.PathLike[str], sample_rate: int) -> Iterator[np.ndarray]:
    """Blocks [n] of float32 mono audio at `sample_rate`, about 10 s each, in bounded memory.

    Channels are averaged; another rate is converted by soxr at its HQ setting; N samples at rate r give
    round(N * sample_rate / r). Raises `AudioError` naming the file: missing, not a regular file, no audio, empty,
    shorter than its header says, NaN or infinite samples. (An Ogg stream has no length in its header, nor has an MP3
    stream without a Xing or VBRI frame: one that was cut is read as far as it goes.) Files that were joined end to end
    are read to the last one's end.
    """
    return (block for _, block in _blocks(Path(path), sample_rate, 0))


def _blocks(path: Path, sample_rate: int, start: int) -> Iterator[tuple[int, np.ndarray]]:
    """(first sample, block) of what `stream_audio` gives, from some sample up to `start` on."""
    check_readable(path)
    passed = 0
    try:
        with open(path, "rb") as file:
            for part in parts_of(file):
                with _opened(path, os.fsencode(path) if part.whole else PartFile(file, part)) as sound:
                    passed += _skip(sound, sample_rate, start - passed)
                    for block in _resampled(path, sound, sample_rate):
                        yield passed, block
                        passed += len(block)
    except OSError as error:
        raise AudioError(path, f"cannot be read ({error.strerror or error})") from error


def _opened(path: Path, source: bytes | PartFile) -> soundfile.SoundFile:
    try:
        sound = soundfile.SoundFile(source)
    except (soundfile.SoundFileError, TypeError, ValueError) as error:
        reason, suffix = "no audio that libsndfile can read", path.suffix.lower()
        if suffix in OTHER_SUFFIXES:
            reason += f": {_CONVERT.format('it', suffix)}"
        raise AudioError(path, reason) from error
    refusal: str | None = None
    if sound.samplerate not in _RATES:
        refusal = f"a sample rate of {sound.samplerate} Hz"
    overlong = _OVERLONG.search(sound.extra_info)
    if overlong and int(overlong[1]) > int(overlong[2]):
        refusal = (
            f"truncated: its header claims {overlong[1]} bytes of audio, the file has {overlong[2]} "
            "(where the header is what is wrong, as after writing to a pipe, convert the file once)"
        )
    stopped = _LEFT_OVER.search(sound.extra_info)
    if stopped and (left := os.path.getsize(path) - int(stopped[1])) >= _LEAST_LEFT_OVER:
        refusal = (
            f"a wrong header: after the {sound.frames / sound.samplerate:.2f} s that it counts, {left} bytes follow "
            "(convert the file once, as with ffmpeg -ignore_length 1 -i IN.wav OUT.wav)"
        )
    if refusal is not None:
        sound.close()
        raise AudioError(path, refusal)
    return sound


def _skip(sound: soundfile.SoundFile, sample_rate: int, samples: int) -> int:
    """Moves on to at most this sample at `sample_rate`, where that can be done exactly; returns the one it came to.

    To a place that is a sample at both rates, and 1 s before, so that the converter's filter has what it needs; and not
    within the first half minute, which is read at once and stays equal to the last bit.
    """
    exact = sound.format in _SEEKABLE and sound.subtype.startswith(("PCM", "FLOAT", "DOUBLE")) and sound.seekable()
    step = math.gcd(sound.samplerate, sample_rate)
    steps = (samples - sample_rate) // (sample_rate // step)
    if not exact or samples < _SKIP_SECONDS * sample_rate or steps * (sound.samplerate // step) >= sound.frames:
        return 0
    sound.seek(steps * (sound.samplerate // step))
    return steps * (sample_rate // step)


def _resampled(path: Path, sound: soundfile.SoundFile, sample_rate: int) -> Iterator[np.ndarray]:
    convert = None
    if sound.samplerate != sample_rate:
        convert = soxr.ResampleStream(sound.samplerate, sample_rate, 1, dtype="float32", quality="HQ")
    size = min(round(_BLOCK_SECONDS * sound.samplerate), _BLOCK_VALUES // sound.channels)
    read = sound.tell() if sound.seekable() else 0  # asking a file that cannot be sought where it is raises
    while True:
        try:
            block = sound.read(size, dtype="float32", always_2d=True)  # [n, channels]
        except soundfile.SoundFileError as error:
            raise AudioError(path, f"damaged after {read / sound.samplerate:.1f} s") from error
        if not np.isfinite(block).all():
            bad = int(np.count_nonzero(~np.isfinite(block)))
            raise AudioError(path, f"{bad} NaN or infinite samples near {read / sound.samplerate:.1f} s")
        read += len(block)
        last = len(block) < size
        mono = block.mean(axis=1, dtype=np.float32)
        if convert is not None:
            mono = convert.resample_chunk(mono, last=last)
        if mono.size:
            yield mono
        if last:
            break
    if read == 0:
        raise AudioError(path, "no samples")
    # One part in a hundred: an MP3's encoder and decoder may count its first and last frames differently.
    if read < 0.99 * sound.frames:
        raise AudioError(path, f"truncated: its header claims {sound.frames} samples, {read} can be read")


def read_audio(
    path: str | os.PathLike[str],
    sample_rate: int,
    *,
    start: int = 0,
    length: int | None = None,
    allow_short: bool = False,
) -> Tensor:
    """The file as [1, N] float32: mono (mean over channels) at `sample_rate` (soxr HQ).

    With `length`, samples `start` to `start + length` (at `sample_rate`) alone, and with `allow_short` what there is of
    them: what comes before is skipped, or where the format cannot do that exactly (MP3, Ogg) decoded and dropped, what
    comes after is not read, and no more than the clip is held. Raises `AudioError` as `stream_audio` does, of what is
    read; and, without `allow_short`, where the file ends too early.
    """
    kept: list[np.ndarray] = []
    passed, end = 0, None if length is None else start + length
    for first, block in _blocks(Path(path), sample_rate, start):
        passed = first + len(block)
        wanted = block[max(0, start - first) : None if end is None else max(0, end - first)]
        if wanted.size:
            kept.append(wanted.copy())  # a view would keep all of the block
        if end is not None and passed >= end:
            break
    if end is not None and passed < end and not allow_short:
        have, at, need = (samples / sample_rate for samples in (passed, start, end))
        raise AudioError(path, f"{have:.2f} s long, but the clip at {at:g} s ends at {need:.2f} s")
    if passed == 0:
        raise AudioError(path, f"shorter than one sample at {sample_rate} Hz")
    return torch.from_numpy(np.concatenate(kept) if kept else np.zeros(0, np.float32))[None]


_FORMATS = {".wav": "WAV", ".flac": "FLAC"}


def write_audio(
    path: str | os.PathLike[str],
    audio: Tensor | np.ndarray,
    sample_rate: int,
    comment: str | None = None,
    *,
    subtype: str = "PCM_16",
    into: Callable[[Path], AbstractContextManager[Path]] = replacing,
) -> None:
    """Write mono audio, [N] or [1, N], as `.wav` or `.flac`, by a temporary file that replaces `path` at the end.

    `subtype` is libsndfile's: "PCM_16" (default), "PCM_24", or "FLOAT" (WAV only). For the PCM types a signal that
    exceeds 1 is scaled down as a whole to a peak of 0.999, with a warning that states the factor; nothing is clipped.
    `comment` goes into the file's metadata. `into` gives that temporary file (`storage.outputs.writing` refuses to
    replace what is not ours). Raises `AudioError` where the audio is empty, has NaN or infinite samples,
    or the file cannot be written.
    """
    path = Path(path)
    samples = torch.as_tensor(audio).detach().to("cpu", torch.float32)
    if samples.ndim == 2 and samples.shape[0] == 1:
        samples = samples[0]
    if samples.ndim != 1:
        raise ValueError(f"audio must be [N] or [1, N], got shape {list(samples.shape)}")
    if path.suffix.lower() not in _FORMATS:
        raise AudioError(path, f"can only be written as {' or '.join(_FORMATS)}, by its suffix")
    kind = _FORMATS[path.suffix.lower()]
    if not soundfile.check_format(kind, subtype):
        raise ValueError(f"subtype must be one that {kind} has, got {subtype!r}")
    if len(samples) == 0:
        raise AudioError(path, "not written: the audio is empty")
    if not bool(samples.isfinite().all()):
        raise AudioError(path, f"not written: {int((~samples.isfinite()).sum())} NaN or infinite samples")
    peak = float(samples.abs().max())
    if subtype != "FLOAT" and peak > 1:
        log.warning("%r: peak %.3f, scaled by %.3f so that nothing clips", str(path), peak, 0.999 / peak)
        samples = samples * (0.999 / peak)
    try:
        with into(path) as temporary:
            name = os.fsencode(temporary)
            with soundfile.SoundFile(name, "w", sample_rate, 1, format=kind, subtype=subtype) as sound:
                if comment is not None:
                    sound.comment = comment
                sound.write(samples.numpy())
    except (OSError, soundfile.SoundFileError) as error:
        reason = "no such folder" if not path.parent.is_dir() else str(error)
        raise AudioError(path, f"cannot be written ({reason})") from error


_named: set[str] = set()


def find_audio(folder: str | os.PathLike[str]) -> list[Path]:
    """What `list_audio` lists; of the files that are not read a warning says the count and kinds, once a process."""
    found, others = list_audio(folder)
    if others and (text := f"{os.fspath(folder)!r}: {others}") not in _named:  # a run lists its data twice
        _named.add(text)
        log.warning("%s", text)
    return found


def list_audio(folder: str | os.PathLike[str]) -> tuple[list[Path], str]:
    """Every file below `folder` with one of `AUDIO_SUFFIXES` (any case), sorted; and what to say of `OTHER_SUFFIXES`.

    What a command of ours composed, cut or decoded is left out, which a warning says: a run in the data folder does not
    train on its own examples. Hidden files and folders are skipped; links are followed, each folder once, so that loops
    end. What stands there under such a name without being audio is listed as well: reading it says what is wrong.
    Raises `AudioError` where `folder` is no folder or cannot be listed.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise AudioError(folder, "not a folder" if folder.exists() else "no such folder")
    found: list[Path] = []
    others: Counter[str] = Counter()
    made: list[Path] = []
    seen: set[tuple[int, int]] = set()

    def refuse(error: OSError) -> None:
        raise AudioError(error.filename or folder, f"cannot be listed ({error.strerror})") from error

    for root, folders, files in os.walk(folder, followlinks=True, onerror=refuse):
        info = os.stat(root)
        if (info.st_dev, info.st_ino) in seen:
            folders.clear()
            continue
        seen.add((info.st_dev, info.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        visible = [name for name in files if not name.startswith(".")]
        suffixes = {name: Path(name).suffix.lower() for name in visible}
        others.update(suffix for suffix in suffixes.values() if suffix in OTHER_SUFFIXES)
        names = [name for name in visible if suffixes[name] in AUDIO_SUFFIXES]
        ours = outputs.made_in(Path(root)).intersection(names) if names else set()
        made += [Path(root, name) for name in ours]
        found += [Path(root, name) for name in names if name not in ours]
    if made:
        log.warning(
            "%r: %d audio files that adaptive-window wrote itself are left out (%r%s)",
            *(str(folder), len(made), str(min(made)), ", ..." * (len(made) > 1)),
        )
    return sorted(found), _say_others(others)


def _say_others(others: Counter[str]) -> str:
    if not others:
        return ""
    count, kinds = others.total(), ", ".join(f"{n} {suffix}" for suffix, n in sorted(others.items()))
    them, plural = ("them", "s") if count > 1 else ("it", "")
    return f"{count} file{plural} of kinds that are not read left out ({kinds}): {_CONVERT.format(them, min(others))}"
