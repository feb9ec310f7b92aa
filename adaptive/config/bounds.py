"""What an option's value may be: every bound is here, once, and options name the type that has it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from jsonargparse.typing import ClosedUnitInterval, NonNegativeInt, PositiveInt, restricted_number_type

__all__ = [
    "AtLeastOne",
    "ClipCount",
    "ClosedUnitInterval",
    "CodecName",
    "DemoCodecName",
    "Device",
    "DropoutRate",
    "Duration",
    "NonNegativeFloat",
    "NonNegativeInt",
    "PairCount",
    "Place",
    "Port",
    "PositiveFloat",
    "PositiveInt",
    "RunCount",
    "Seed",
    "Song",
    "SongCount",
    "WorkerCount",
]

CodecName = Literal["mel", "encodec-24khz", "encodec-32khz"]
DemoCodecName = Literal["auto", "mel", "encodec-24khz", "encodec-32khz"]
Device = Literal["auto", "cpu", "cuda"]
Song = Literal["input", "target", "none"]

SEEDS = 2**32  # epochs and ranks are mixed in, in 64 bits

if TYPE_CHECKING:  # type checkers take no type that is made by a call
    PositiveFloat = float
    NonNegativeFloat = float
    AtLeastOne = float
    DropoutRate = float
    Duration = float
    Place = float
    ClipCount = int
    PairCount = int
    Port = int
    RunCount = int
    SongCount = int
    WorkerCount = int
    Seed = int
else:
    # finite: jsonargparse's own of these names take infinity
    _FINITE = ("<", float("inf"))
    PositiveFloat = restricted_number_type("Positive", float, [(">", 0.0), _FINITE])
    NonNegativeFloat = restricted_number_type("NonNegative", float, [(">=", 0.0), _FINITE])
    AtLeastOne = restricted_number_type("AtLeastOne", float, [(">=", 1.0), _FINITE])
    DropoutRate = restricted_number_type("DropoutRate", float, [(">=", 0.0), ("<", 1.0)])
    # Beyond these a slip of the finger takes the machine's memory or its day before anything can be said about it.
    Duration = restricted_number_type("Duration", float, [(">", 0.0), ("<=", 86_400.0)])
    Place = restricted_number_type("Place", float, [(">=", 0.0), ("<=", 1_000_000.0)])
    ClipCount = restricted_number_type("ClipCount", int, [(">", 0), ("<=", 100_000)])
    PairCount = restricted_number_type("PairCount", int, [(">", 0), ("<=", 256)])
    Port = restricted_number_type("Port", int, [(">=", 0), ("<=", 65535)])
    RunCount = restricted_number_type("RunCount", int, [(">", 0), ("<=", 1000)])
    SongCount = restricted_number_type("SongCount", int, [(">", 0), ("<=", 10_000)])
    WorkerCount = restricted_number_type("WorkerCount", int, [(">=", 0), ("<=", 256)])
    Seed = restricted_number_type("Seed", int, [(">=", 0), ("<", SEEDS)])
