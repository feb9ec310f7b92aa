"""The modules: window selection, resampling, tonality transform, composition. They know nothing of audio or codecs."""

from .agent import AdaptiveWindowCreativeAgent
from .composer import CompositionalCreativeAgent
from .compressor import TemporalCompressor
from .correlation_selector import CorrelationSelector
from .selector import WindowSelector, windows_from_logits
from .tonality import TonalityReducer

__all__ = [
    "AdaptiveWindowCreativeAgent",
    "CompositionalCreativeAgent",
    "CorrelationSelector",
    "TemporalCompressor",
    "TonalityReducer",
    "WindowSelector",
    "windows_from_logits",
]
