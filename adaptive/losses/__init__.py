"""Losses and regularizers: pure functions of signals and windows. They know nothing of modules, codecs or runs.

regions      where pairs look: apart in place and in ratio
matching     do a pair's two windows hold the same thing?
rhythm       onsets, and tempo by the lags at which they repeat
harmony      which pitch classes sound
conflict     do two windows clash when both are heard?
spectral     patterns against windows, and decoded audio against audio
"""

from .composing import regrooved, spread_matching
from .conflict import harmonic_alignment, harmonic_conflict
from .harmony import harmony_matching, pitch_classes
from .matching import matching_loss
from .regions import ratio_diversity, window_overlap_penalty
from .rhythm import onset_envelope, rhythm_matching, tempo_matching
from .spectral import (
    envelope_copy_penalty,
    multi_resolution_stft_loss,
    multi_scale_latent_loss,
    reconstruction_loss,
)

__all__ = [
    "envelope_copy_penalty",
    "harmonic_alignment",
    "harmonic_conflict",
    "harmony_matching",
    "matching_loss",
    "multi_resolution_stft_loss",
    "multi_scale_latent_loss",
    "onset_envelope",
    "pitch_classes",
    "ratio_diversity",
    "reconstruction_loss",
    "regrooved",
    "rhythm_matching",
    "spread_matching",
    "tempo_matching",
    "window_overlap_penalty",
]
