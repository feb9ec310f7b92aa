"""Codecs by name: `load_codec`, and the names that code around codecs needs. What a codec is says `interface`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from .encodec import load_encodec
from .interface import Codec, CodecChoiceError, CodecUnavailable, digest
from .mel import MelCodec

__all__ = ["CODECS", "Codec", "CodecChoiceError", "CodecUnavailable", "digest", "load_codec"]


def _mel(*, weights: str | Path | None, random: bool, **_: Any) -> Codec:
    if weights is not None:
        raise CodecChoiceError(f"weights must be None for the mel codec, which has none; got {str(weights)!r}")
    if random:
        raise CodecChoiceError("random must be False for the mel codec, which has no weights to draw")
    return MelCodec()


_FACTORIES: dict[str, Callable[..., Codec]] = {
    "mel": _mel,
    "encodec-24khz": partial(load_encodec, "encodec-24khz"),
    "encodec-32khz": partial(load_encodec, "encodec-32khz"),
}
CODECS: tuple[str, ...] = tuple(_FACTORIES)
_REFUSED = {
    "encodec-48khz": "it is stereo and encodes 1 s chunks, each with its own loudness scale, so its latents are no "
    "continuous sequence to move a window over"
}


def load_codec(
    name: str,
    *,
    weights: str | Path | None = None,
    random: bool = False,
    device: str | torch.device = "cpu",
    fetch: bool = True,
    timeout: float = 5.0,
) -> Codec:
    """Build the codec called `name`.

    `mel` needs no weights. The EnCodec models take them from `weights` (a file or a folder) or, where it is None, from
    the local hub caches, or by download when `fetch` is true (given up `timeout` seconds after the last byte came).
    `random` draws the weights instead (seeded) and warns on every load.

    Raises `CodecChoiceError` for an unknown name or options that do not fit it, `CodecUnavailable` where the weights
    or the `encodec` package are missing.
    """
    if name in _REFUSED:
        raise CodecChoiceError(f"codec {name!r} is not supported: {_REFUSED[name]}; choose one of {', '.join(CODECS)}")
    if name not in _FACTORIES:
        raise CodecChoiceError(f"codec must be one of {', '.join(CODECS)}, got {name!r}")
    return _FACTORIES[name](weights=weights, random=random, fetch=fetch, timeout=timeout).to(device)
