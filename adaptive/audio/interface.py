"""What a codec is: audio to latents [B, 128, T] and back, at a frame rate that is the codec's own."""

from __future__ import annotations

import abc
import hashlib
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from ..errors import AdaptiveWindowError


class CodecUnavailable(AdaptiveWindowError, RuntimeError):
    """A codec that cannot run here; the message says what to fetch and where to put it."""


class CodecChoiceError(AdaptiveWindowError, ValueError):
    """A codec's name or options that do not go together; the message says what to choose."""


class Codec(abc.ABC):
    """Audio at `sample_rate` to latents and back; one frame stands for `hop` samples.

    `name` is one of `codec.CODECS`; `random` says that its weights are random numbers (nothing it decodes is then of
    any use); `differentiable` says whether `decode` carries gradients to its latents. A codec is frozen: it is not an
    `nn.Module`, so that a module that holds one neither trains it nor saves it.
    """

    name: str
    sample_rate: int
    hop: int
    dim: int = 128
    random: bool = False
    differentiable: bool = False
    context: int = 0
    """Frames to either side that a frame's latent depends on, beyond which chunked encoding changes nothing (or, for
    a recurrent codec, nearly nothing)."""

    @property
    def frame_rate(self) -> float:
        """Frames per second, `sample_rate / hop`."""
        return self.sample_rate / self.hop

    @property
    @abc.abstractmethod
    def fingerprint(self) -> str:
        """16 hex digits: two codecs with the same fingerprint encode alike."""

    @property
    @abc.abstractmethod
    def device(self) -> torch.device:
        """Where it computes; `encode` and `decode` take tensors of any device and return theirs there."""

    @abc.abstractmethod
    def to(self, device: str | torch.device) -> Codec:
        """Move to `device`, in place; returns the codec itself."""

    @abc.abstractmethod
    def _encode(self, audio: Tensor) -> Tensor:
        """Float32 audio [B, 1, T * hop] on the codec's device -> [B, dim, T]."""

    @abc.abstractmethod
    def _decode(self, latents: Tensor) -> Tensor:
        """Float32 latents [B, dim, T] on the codec's device -> [B, 1, at least T * hop]."""

    def encode(self, audio: Tensor) -> Tensor:
        """Audio [B, 1, N] -> latents [B, dim, ceil(N / hop)], float32; a last frame not full is filled with zeros."""
        if audio.ndim != 3 or audio.shape[1] != 1 or audio.shape[2] == 0:
            raise ValueError(f"audio must be [B, 1, N] with N >= 1, got shape {list(audio.shape)}")
        missing = -audio.shape[-1] % self.hop
        audio = torch.nn.functional.pad(audio.to(self.device, torch.float32), (0, missing))
        with torch.autocast(audio.device.type, enabled=False):
            return self._encode(audio)[..., : audio.shape[-1] // self.hop]

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, dim, T] -> audio [B, 1, T * hop], float32. Peaks above 1 are left as they are."""
        if latents.ndim != 3 or latents.shape[1] != self.dim or latents.shape[2] == 0:
            raise ValueError(f"latents must be [B, {self.dim}, T] with T >= 1, got shape {list(latents.shape)}")
        latents = latents.to(self.device, torch.float32)
        with torch.autocast(latents.device.type, enabled=False):
            return self._decode(latents)[..., : latents.shape[-1] * self.hop]

    def frames(self, seconds: float) -> int:
        """Whole frames nearest to `seconds`."""
        return round(seconds * self.frame_rate)

    def seconds(self, frames: float) -> float:
        """Duration of `frames` (fractions allowed) in seconds."""
        return frames / self.frame_rate


def digest(parts: Iterable[str], tensors: Mapping[str, Tensor]) -> str:
    """First 16 hex digits of the sha256 of strings and named tensors."""
    sha = hashlib.sha256("\n".join(parts).encode())
    for key in sorted(tensors):
        value = tensors[key].detach().cpu().contiguous()
        sha.update(f"\n{key} {value.dtype} {list(value.shape)}\n".encode())
        sha.update(value.numpy().data)
    return sha.hexdigest()[:16]
