"""The name under which these were public; they are in `adaptive_window.losses.rhythm`."""

from ..losses.rhythm import (
    LAGS,
    LAGS_SECONDS,
    annealed_rhythm_blur,
    check_lags,
    on_log_axis,
    onset_repeats,
    rhythm_profile,
    tempo_matching,
)
from ..losses.signals import pearson as profile_correlation

__all__ = [
    "LAGS",
    "LAGS_SECONDS",
    "annealed_rhythm_blur",
    "check_lags",
    "on_log_axis",
    "onset_repeats",
    "profile_correlation",
    "rhythm_profile",
    "tempo_matching",
]
