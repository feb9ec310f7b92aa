"""What an option's value may be: every bound is here, once, and options name the type that has it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal

from jsonargparse.typing import ClosedUnitInterval, NonNegativeInt, PositiveInt, register_type, restricted_number_type

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

LATEST = 1_000_000.0  # seconds of a song
_CLOCK = re.compile(r"(?:(?:(?P<h>\d+):)?(?P<m>\d+):)?(?P<s>\d+(?:\.\d*)?|\.\d+)s?")
_UNITS = re.compile(r"(?=\d)(?:(?P<h>\d+)h)?(?:(?P<m>\d+)m(?:in)?)?(?:(?P<s>\d+(?:\.\d+)?)s)?")


def seconds_of(value: str | float) -> float:
    """The second that a place in a song is: a number of them, 1:30, 0:01:30.5, 90s, 1m30s or 1h2m.

    Raises:
        ValueError: it is none, or not from 0 to 1,000,000 s.
    """
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(_wanted(value))
    text = str(value).strip().lower()
    found = _CLOCK.fullmatch(text) or _UNITS.fullmatch(text.replace(" ", ""))
    try:
        hours, minutes, seconds = (float(found[k] or 0) for k in "hms") if found else (0.0, 0.0, float(text))
    except ValueError:
        raise ValueError(_wanted(value)) from None
    if found and ((found["m"] and seconds >= 60) or (found["h"] and minutes >= 60)):
        raise ValueError(f"has 60 seconds or minutes, or more, behind a larger unit: got {value!r}")
    second = 3600 * hours + 60 * minutes + seconds
    if not 0 <= second <= LATEST:
        raise ValueError(f"must be from 0 to {LATEST:g} seconds, got {value!r}")
    return second


def _wanted(value: object) -> str:
    return f"must be a number of seconds, or minutes and seconds (90, 90s, 1:30, 0:01:30, 1m30s), got {value!r}"


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

    class Place(float):
        """A place in a song, in seconds (`seconds_of`)."""

        def __new__(cls, value):
            return super().__new__(cls, seconds_of(value))

    register_type(Place, serializer=float, deserializer=Place)
    ClipCount = restricted_number_type("ClipCount", int, [(">", 0), ("<=", 100_000)])
    PairCount = restricted_number_type("PairCount", int, [(">", 0), ("<=", 256)])
    Port = restricted_number_type("Port", int, [(">=", 0), ("<=", 65535)])
    RunCount = restricted_number_type("RunCount", int, [(">", 0), ("<=", 1000)])
    SongCount = restricted_number_type("SongCount", int, [(">", 0), ("<=", 10_000)])
    WorkerCount = restricted_number_type("WorkerCount", int, [(">=", 0), ("<=", 256)])
    Seed = restricted_number_type("Seed", int, [(">=", 0), ("<", SEEDS)])
