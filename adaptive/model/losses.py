"""The name under which the losses were public; they are in `adaptive_window.losses`."""

from ..losses import (
    envelope_copy_penalty,
    multi_resolution_stft_loss,
    multi_scale_latent_loss,
    onset_envelope,
    ratio_diversity,
    reconstruction_loss,
    rhythm_matching,
    window_overlap_penalty,
)

__all__ = [
    "envelope_copy_penalty",
    "multi_resolution_stft_loss",
    "multi_scale_latent_loss",
    "onset_envelope",
    "ratio_diversity",
    "reconstruction_loss",
    "rhythm_matching",
    "window_overlap_penalty",
]
