"""Differentiable window selection for latents `[B, C, T]`: three functions, each with a Triton and a PyTorch backend."""

from .functional import resample_windows, tonality_blend, windowed_tonality

__all__ = ["resample_windows", "tonality_blend", "windowed_tonality"]
