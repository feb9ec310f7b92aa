"""What the commands can be told (`options`), within which bounds, and how that becomes flags and config files."""

from ..errors import UsageError
from .checks import check
from .flags import add_flags, command_line, plain, reads, to_plain, to_yaml
from .options import (
    AblateConfig,
    ComposeConfig,
    DemoConfig,
    EncodeConfig,
    PlotConfig,
    RefineConfig,
    ServeConfig,
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
    "ServeConfig",
    "SongPairOptions",
    "TrainConfig",
    "UsageError",
    "add_flags",
    "cache_folder",
    "check",
    "command_line",
    "plain",
    "reads",
    "to_plain",
    "to_yaml",
]
