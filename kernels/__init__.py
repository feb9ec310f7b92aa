"""Differentiable window selection for latents `[B, C, T]`: three functions, each in Triton, in C and in PyTorch."""

from .functional import resample_windows, tonality_blend, windowed_tonality

__all__ = ["resample_windows", "tonality_blend", "windowed_tonality"]
