"""Differentiable window selection for audio latents."""
