"""The name under which these were public; they are in `adaptive_window.losses.matching`."""

from ..losses.matching import matching_loss, standardized

__all__ = ["matching_loss", "standardized"]
