"""A number that is no count is named."""

from __future__ import annotations


def check_count(name: str, value: object, least: int = 1) -> None:
    """An int of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
