"""A tone, and WAV files written by hand."""

from __future__ import annotations

import struct

import numpy as np

RATE = 8000


def tone(seconds: float = 1.0, rate: int = RATE, hz: float = 440.0, gain: float = 0.5) -> np.ndarray:
    return (gain * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def wav_bytes(samples: np.ndarray, claim: int | None = None, rate: int = RATE) -> bytes:
    """A 16-bit mono WAV written by hand; its data chunk claims `claim` bytes."""
    data = (samples * 32767).astype("<i2").tobytes()
    claim = len(data) if claim is None else claim
    header = struct.pack(
        "<4sI4s4sIHHIIHH", b"RIFF", min(claim + 36, 2**32 - 1), b"WAVE", b"fmt ", 16, 1, 1, rate, 2 * rate, 2, 16
    )
    return header + struct.pack("<4sI", b"data", claim) + data
