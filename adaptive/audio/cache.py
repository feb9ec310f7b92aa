"""Latents of whole files, computed once, kept as safetensors keyed by codec and audio content."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm

from ..durable import write_bytes
from .codec import Codec
from .files import AudioError, check_readable, stream_audio

log = logging.getLogger(__name__)

SILENCE = 1e-4
"""Peak (-80 dB) below which a whole file counts as silent."""

_CHUNK_SECONDS = 30.0


def encode_file(path: str | os.PathLike[str], codec: Codec) -> Tensor:
    """Latents [dim, T] of a whole file, on the CPU, encoded 30 s at a time.

    Each chunk is encoded with `codec.context` frames more on either side. What is in memory grows with the latents
    (92 MB per hour at 50 frames/s), not with the audio. Raises `AudioError` for a bad or silent file.
    """
    step, context, hop = codec.frames(_CHUNK_SECONDS), codec.context, codec.hop
    held = np.zeros(0, dtype=np.float32)  # begins `left` frames before the first frame not yet encoded
    left, peak, chunks = 0, 0.0, []

    def encode(samples: np.ndarray) -> Tensor:
        with torch.no_grad():
            return codec.encode(torch.from_numpy(samples)[None, None])[0].cpu()

    for block in stream_audio(path, codec.sample_rate):
        peak = max(peak, float(np.abs(block).max()))
        held = np.concatenate([held, block])
        while len(held) >= (left + step + context) * hop:
            chunks.append(encode(held[: (left + step + context) * hop])[:, left : left + step])
            done = left + step
            left = min(context, done)
            held = held[(done - left) * hop :]
    if peak < SILENCE:
        raise AudioError(path, f"silent (peak {peak:.1e})")
    if len(held) > left * hop:
        chunks.append(encode(held)[:, left:])
    return torch.cat(chunks, dim=1)


class CacheError(RuntimeError):
    """The latent cache cannot be written, or lost what a run needs; the message says what to do."""


class LatentCache:
    """`latents(path)`: the [dim, T] latents of a whole audio file, from `folder` where they are already there.

    A file is known by the sha256 of its bytes, so that renaming it keeps its entry and changing it makes a new one;
    the codec by its name and fingerprint. An entry is written beside its final name and moved there, so that several
    processes can fill one folder; a damaged one is computed anew, with a warning. With `folder` None the latents stay
    in memory. What is sent to a worker process leaves the codec behind: encode before.
    """

    def __init__(self, folder: str | os.PathLike[str] | None, codec: Codec) -> None:
        self.folder = None if folder is None else Path(folder)
        self.codec: Codec | None = codec
        self._codec_key = f"{codec.name}-{codec.fingerprint}"
        self._memory: dict[str, Tensor] = {}
        self._contents: dict[tuple[str, int, int], str] = {}  # (path, size, time of change) -> key
        self._verified: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "codec": None}

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

    def latents(self, path: str | os.PathLike[str]) -> Tensor:
        """Latents [dim, T] float32 of the whole file. Raises `AudioError` for a bad or silent one."""
        key = self.key(path)
        if (found := self._read(key, None)) is None:
            if self.codec is None:
                raise AudioError(path, "not in the latent cache, and a worker process has no codec to encode it")
            found = encode_file(path, self.codec)
            self._write(key, found)
        return found

    def clip(self, key: str, start: int, frames: int) -> Tensor:
        """Frames `start` to `start + frames` [dim, frames] of the entry of this `key`; reads no more than them."""
        if (found := self._read(key, slice(start, start + frames))) is None:
            raise CacheError(
                f"no latents of {key} under {self.folder}: was the cache emptied during the run? "
                "Go on with --resume, which computes them anew"
            )
        return found

    def encode_all(
        self, paths: Iterable[str | os.PathLike[str]], progress: bool = False
    ) -> tuple[dict[Path, int], list[tuple[Path, str]]]:
        """Encode what is not there yet: frames of each good file, and each bad one with its reason."""
        frames: dict[Path, int] = {}
        bad: list[tuple[Path, str]] = []
        hidden = None if progress else True  # None: hidden where the output is no terminal
        for path in tqdm([Path(path) for path in paths], desc="encoding", unit="file", disable=hidden):
            try:
                frames[path] = self.latents(path).shape[1]
            except AudioError as error:
                bad.append((path, error.reason))
        return frames, bad

    def entry(self, key: str) -> Path | None:
        """Where the latents of `key` are kept; None in memory."""
        return None if self.folder is None else self.folder / self._codec_key / f"{key}.safetensors"

    def _read(self, key: str, part: slice | None) -> Tensor | None:
        path = self.entry(key)
        if path is None:
            found = self._memory.get(key)
            return None if found is None else found[:, part or slice(None)].clone()
        try:
            with safe_open(path, "pt") as file:
                if key not in self._verified:
                    whole = file.get_tensor("latents")
                    if _checksum(whole) != (file.metadata() or {}).get("sha256"):
                        raise ValueError("its checksum differs")
                    self._verified.add(key)
                return file.get_slice("latents")[:, part or slice(None)].clone()
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError, ValueError, RuntimeError) as error:
            log.warning("latent cache: %r is damaged (%s), computed anew", str(path), error)
            return None

    def _write(self, key: str, latents: Tensor) -> None:
        path = self.entry(key)
        if path is None:
            self._memory[key] = latents
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            latents = latents.contiguous()
            metadata = {"sha256": _checksum(latents), "codec": self._codec_key}
            write_bytes(path, save({"latents": latents}, metadata))
        except OSError as error:
            raise CacheError(
                f"the latent cache {self.folder} cannot be written ({error.strerror}): name another --cache"
            ) from error


def _checksum(latents: Tensor) -> str:
    return hashlib.sha256(latents.contiguous().numpy().data).hexdigest()
