"""What an option's value may be: every bound is here, once, and options name the type that has it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from jsonargparse.typing import ClosedUnitInterval, NonNegativeInt, PositiveInt, restricted_number_type

__all__ = [
    "AtLeastOne",
    "ClosedUnitInterval",
    "CodecName",
    "Device",
    "DropoutRate",
    "NonNegativeFloat",
    "NonNegativeInt",
    "PairCount",
    "PositiveFloat",
    "PositiveInt",
    "Seed",
    "Song",
    "WorkerCount",
]

CodecName = Literal["mel", "encodec-24khz", "encodec-32khz"]
Device = Literal["auto", "cpu", "cuda"]
Song = Literal["input", "target", "none"]

if TYPE_CHECKING:  # type checkers take no type that is made by a call
    PositiveFloat = float
    NonNegativeFloat = float
    AtLeastOne = float
    DropoutRate = float
    PairCount = int
    WorkerCount = int
    Seed = int
else:
    # finite: jsonargparse's own of these names take infinity
    _FINITE = ("<", float("inf"))
    PositiveFloat = restricted_number_type("Positive", float, [(">", 0.0), _FINITE])
    NonNegativeFloat = restricted_number_type("NonNegative", float, [(">=", 0.0), _FINITE])
    AtLeastOne = restricted_number_type("AtLeastOne", float, [(">=", 1.0), _FINITE])
    DropoutRate = restricted_number_type("DropoutRate", float, [(">=", 0.0), ("<", 1.0)])
    # Beyond these a slip of the finger takes the machine's memory before anything can be said about it.
    PairCount = restricted_number_type("PairCount", int, [(">", 0), ("<=", 256)])
    WorkerCount = restricted_number_type("WorkerCount", int, [(">=", 0), ("<=", 256)])
    Seed = restricted_number_type("Seed", int, [(">=", 0), ("<", 2**32)])  # epochs and ranks are mixed in, in 64 bits
