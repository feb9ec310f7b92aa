"""What the commands can be told (`options`), within which bounds, and how that becomes flags and config files."""

from ..errors import UsageError
from .flags import add_flags, plain, to_plain
from .options import (
    AblateConfig,
    ComposeConfig,
    DemoConfig,
    EncodeConfig,
    PlotConfig,
    RefineConfig,
    SongPairOptions,
    TrainConfig,
    cache_folder,
)

__all__ = [
    "AblateConfig",
    "ComposeConfig",
    "DemoConfig",
    "EncodeConfig",
    "PlotConfig",
    "RefineConfig",
    "SongPairOptions",
    "TrainConfig",
    "UsageError",
    "add_flags",
    "cache_folder",
    "plain",
    "to_plain",
]
