"""Latents of whole files, computed once, kept as safetensors keyed by codec and audio content.

    frames                  float32 [T, dim]: a clip lies in one piece
    metadata["codec"]       name and fingerprint
    metadata["sha256"]      of the frames' bytes

An entry is written and checked piece by piece, so that a song of hours needs no more memory than one of minutes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..console import Meter, duration
from ..errors import AdaptiveWindowError
from ..storage.durable import replacing
from .files import AudioError, check_readable, stream_audio
from .interface import Codec

log = logging.getLogger(__name__)

SILENCE = 1e-4
"""Peak (-80 dB) below which a whole file counts as silent."""

# Of `safe_open` and its slices. It opens a file twice, and torch, which is the second, says RuntimeError where it has
# gone since.
_UNREADABLE = (SafetensorError, OSError, RuntimeError)

_CHUNK_SECONDS = 30.0
_HEADER_BYTES = 512  # of an entry: the length of the frames is known at the end, and the header stands before them


def stream_latents(path: str | os.PathLike[str], codec: Codec) -> Iterator[Tensor]:
    """Latents [dim, n] of a whole file in pieces of 30 s, on the CPU.

    Each is encoded with `codec.context` frames more on either side. Raises `AudioError` for a bad or silent file, at
    its end only where it is silent or damaged there.
    """
    step, context, hop = codec.frames(_CHUNK_SECONDS), codec.context, codec.hop
    held = np.zeros(0, dtype=np.float32)  # begins `left` frames before the first frame not yet encoded
    left, peak = 0, 0.0

    def encode(samples: np.ndarray) -> Tensor:
        with torch.no_grad():
            return codec.encode(torch.from_numpy(samples)[None, None])[0].cpu()

    for block in stream_audio(path, codec.sample_rate):
        peak = max(peak, float(np.abs(block).max()))
        held = np.concatenate([held, block])
        while len(held) >= (left + step + context) * hop:
            yield encode(held[: (left + step + context) * hop])[:, left : left + step]
            done = left + step
            left = min(context, done)
            held = held[(done - left) * hop :]
    if peak < SILENCE:
        raise AudioError(path, f"silent (peak {peak:.1e})")
    if len(held) > left * hop:
        yield encode(held)[:, left:]


def encode_file(path: str | os.PathLike[str], codec: Codec) -> Tensor:
    """All of `stream_latents` as one tensor [dim, T]: 92 MB per hour at 50 frames/s and 128 channels."""
    return torch.cat(list(stream_latents(path, codec)), dim=1)


class CacheError(AdaptiveWindowError, RuntimeError):
    """The latent cache cannot be written, or lost what a run needs; the message says what to do."""


class LatentCache:
    """`latents(path)`: the [dim, T] latents of a whole audio file, from `folder` where they are already there.

    A file is known by the sha256 of its bytes, so that renaming it keeps its entry and changing it makes a new one;
    the codec by its name and fingerprint. An entry is written beside its final name and moved there, so that several
    processes can fill one folder; a damaged one is computed anew, with a warning. With `folder` None the latents stay
    in memory. What is sent to a worker process leaves the codec behind: encode before.

    Once encoded, audio files may go: clips are known by their key. Entries may not: a clip whose entry is gone or
    damaged raises `CacheError`.
    """

    def __init__(self, folder: str | os.PathLike[str] | None, codec: Codec) -> None:
        self.folder = None if folder is None else Path(folder)
        self.codec: Codec | None = codec
        self._codec_key = f"{codec.name}-{codec.fingerprint}"
        self._memory: dict[str, Tensor] = {}
        self._contents: dict[tuple[str, int, int], str] = {}  # (path, size, time of change) -> key
        self._verified: set[str] = set()
        self._meter: Meter | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "codec": None, "_meter": None}

    def key(self, path: str | os.PathLike[str]) -> str:
        """The sha256 of the file's bytes in hex, computed once per path, size and time of change."""
        info = check_readable(path)
        known = (os.fspath(path), info.st_size, info.st_mtime_ns)
        if known not in self._contents:
            try:
                with open(path, "rb") as file:
                    self._contents[known] = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError as error:
                raise AudioError(path, f"cannot be read ({error.strerror})") from error
        return self._contents[known]

    def frames(self, path: str | os.PathLike[str]) -> int:
        """T, the frames of the whole file; encodes it where its entry is missing. Raises `AudioError` for a bad one."""
        key = self.key(path)
        if (count := self._count(key)) is None:
            if self.codec is None:
                raise AudioError(path, "not in the latent cache, and a worker process has no codec to encode it")
            count = self._fill(key, path, self.codec)
        return count

    def latents(self, path: str | os.PathLike[str]) -> Tensor:
        """Latents [dim, T] float32 of the whole file. Raises `AudioError` for a bad or silent one."""
        return self.clip(self.key(path), 0, self.frames(path))

    def clip(self, key: str, start: int, frames: int) -> Tensor:
        """Frames `start` to `start + frames` [dim, frames] of the entry of this `key`; reads no more than them."""
        path = self.entry(key)
        if path is None and key in self._memory:
            return self._memory[key][:, start : start + frames].clone()
        try:
            if path is None or (key not in self._verified and self._count(key) is None):
                raise FileNotFoundError
            with safe_open(path, "pt") as file:
                return file.get_slice("frames")[start : start + frames].T.contiguous()
        except _UNREADABLE as error:
            song = next((known[0] for known, its in self._contents.items() if its == key), key)
            raise CacheError(
                f"the latents of {song!r} are gone from the cache ({path}): was it emptied or changed during the run? "
                "Go on with --resume, which computes them anew"
            ) from error

    def encode_all(
        self, paths: Iterable[str | os.PathLike[str]], progress: bool = False
    ) -> tuple[dict[Path, int], list[tuple[Path, str]]]:
        """Encode what is not there yet: frames of each good file, and each bad one with its reason."""
        frames: dict[Path, int] = {}
        bad: list[tuple[Path, str]] = []
        files = [Path(path) for path in paths]
        with Meter(len(files), what="encoding", unit="file", hidden=not progress) as self._meter:
            for path in files:
                try:
                    frames[path] = self.frames(path)
                except AudioError as error:
                    bad.append((path, error.reason))
                self._meter.advance(repr(path.name))
        self._meter = None
        return frames, bad

    def entry(self, key: str) -> Path | None:
        """Where the latents of `key` are kept; None in memory."""
        return None if self.folder is None else self.folder / self._codec_key / f"{key}.safetensors"

    def _count(self, key: str) -> int | None:
        """Frames of an entry that is there and whole; its checksum is computed once."""
        path = self.entry(key)
        if path is None:
            return self._memory[key].shape[1] if key in self._memory else None
        try:
            with safe_open(path, "pt") as file:
                count, metadata = int(file.get_slice("frames").get_shape()[0]), file.metadata() or {}
            if key not in self._verified:
                if _checksum(path) != metadata.get("sha256"):
                    raise ValueError("its checksum differs")
                self._verified.add(key)
            return count
        except FileNotFoundError:
            return None
        except (*_UNREADABLE, ValueError) as error:
            log.warning("latent cache: %r is damaged (%s), computed anew", str(path), error)
            return None

    def _fill(self, key: str, path: str | os.PathLike[str], codec: Codec) -> int:
        """Encodes a file into its entry; its frames."""
        before, entry = check_readable(path), self.entry(key)
        if entry is None:
            self._memory[key] = encode_file(path, codec)
            count = self._memory[key].shape[1]
        else:
            try:
                entry.parent.mkdir(parents=True, exist_ok=True)
                with replacing(entry) as temporary, open(temporary, "wb") as file:
                    count = _write_entry(file, self._watched(path, codec), self._codec_key)
            except OSError as error:
                raise CacheError(
                    f"the latent cache {self.folder} cannot be written ({error.strerror}): make room, or name another "
                    "--cache"
                ) from error
        after = check_readable(path)
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            self._forget(key)
            raise AudioError(path, "changed while it was read")
        return count

    def _watched(self, path: str | os.PathLike[str], codec: Codec) -> Iterator[Tensor]:
        """`stream_latents`, with a sign of life where the file is long."""
        count = 0
        for piece in stream_latents(path, codec):
            count += piece.shape[1]
            if self._meter is not None:
                self._meter.alive(f"{os.path.basename(path)!r} at {duration(codec.seconds(count))}")
            yield piece

    def _forget(self, key: str) -> None:
        entry = self.entry(key)
        self._memory.pop(key, None)
        if entry is not None:
            entry.unlink(missing_ok=True)


def _write_entry(file: BinaryIO, pieces: Iterable[Tensor], codec: str) -> int:
    """Pieces [dim, n] as a safetensors file of one tensor [T, dim] (its header: 8 bytes of length, JSON, padding)."""
    sha, count, dim = hashlib.sha256(), 0, 0
    file.write(bytes(_HEADER_BYTES))
    for piece in pieces:
        rows = piece.to(torch.float32).T.contiguous().numpy()
        sha.update(rows.data)
        file.write(rows.data)
        count, dim = count + rows.shape[0], rows.shape[1]
    header = {
        "__metadata__": {"codec": codec, "sha256": sha.hexdigest()},
        "frames": {"dtype": "F32", "shape": [count, dim], "data_offsets": [0, 4 * count * dim]},
    }
    text = json.dumps(header).encode().ljust(_HEADER_BYTES - 8)
    file.seek(0)
    file.write(len(text).to_bytes(8, "little") + text)
    return count


def _checksum(path: Path) -> str:
    """Of all that follows the header."""
    with open(path, "rb") as file:
        file.seek(8 + int.from_bytes(file.read(8), "little"))
        return hashlib.file_digest(file, "sha256").hexdigest()
