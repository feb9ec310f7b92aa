"""Differentiable window selection for audio latents: exact gradients for start and ratio, no host sync.

The public names load on first use, so that `import adaptive_window` costs nothing and needs only torch and numpy.
"""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .inference.refine import refine_windows
    from .model.agent import AdaptiveWindowCreativeAgent
    from .model.composer import CompositionalCreativeAgent
    from .model.compressor import TemporalCompressor
    from .model.correlation_selector import CorrelationSelector
    from .model.selector import WindowSelector
    from .model.tonality import TonalityReducer

__all__ = [
    "AdaptiveWindowCreativeAgent",
    "CompositionalCreativeAgent",
    "CorrelationSelector",
    "TemporalCompressor",
    "TonalityReducer",
    "WindowSelector",
    "refine_windows",
]

_HOME = {**dict.fromkeys(__all__, ".model"), "refine_windows": ".inference.refine"}

try:
    __version__ = version("adaptive-window")
except PackageNotFoundError:  # the folder was put on the path by hand, not installed
    __version__ = "0+unknown"


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
