"""The name under which these were public; they are in `adaptive_window.losses.scale_space`."""

from ..losses.scale_space import annealed_sigma, check_sigma, gaussian_blur

__all__ = ["annealed_sigma", "check_sigma", "gaussian_blur"]
