"""Frames of an MP3 stream, counted: what its header does not say, decoders guess from the first frame's bit rate.

Sources: ISO/IEC 11172-3 and 13818-3 (frame headers, layer III); the Xing header as LAME writes it (frames and bytes of
the whole stream, in the first frame), and Fraunhofer's VBRI: G. Bouvigne, "MP3 Info Tag revision 1 Specification",
http://gabriel.mp3-tech.org/mp3infotag.html.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import BinaryIO

RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}  # by the version's two bits
KBITS_1 = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
KBITS_2 = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
LEAST_FRAMES = 8  # fewer in a row, without a header, are no song
SEARCH = 1 << 16  # bytes read at a time where a frame is looked for


@dataclass(frozen=True)
class Frame:
    """One frame's header: its bytes, whether MPEG-1, its sample rate, channels, and length in bytes."""

    header: bytes
    mpeg1: bool
    rate: int
    mono: bool
    length: int

    @property
    def tag_at(self) -> int:
        """Where a Xing header would begin: behind the side information."""
        return 4 + ((17 if self.mono else 32) if self.mpeg1 else (9 if self.mono else 17))


def parse(header: bytes) -> Frame | None:
    """The frame of layer III that begins with these four bytes, None where none does (or of free bit rate)."""
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE0 != 0xE0:
        return None
    version, layer, kbits, rate = header[1] >> 3 & 3, header[1] >> 1 & 3, header[2] >> 4, header[2] >> 2 & 3
    if version == 1 or layer != 1 or kbits in (0, 15) or rate == 3:
        return None
    mpeg1, hertz = version == 3, RATES[version][rate]
    length = (144000 if mpeg1 else 72000) * (KBITS_1 if mpeg1 else KBITS_2)[kbits] // hertz + (header[2] >> 1 & 1)
    return Frame(header, mpeg1, hertz, header[3] >> 6 == 3, length)


def read_at(file: BinaryIO, place: int, count: int) -> bytes:
    file.seek(place)
    return file.read(count)


def frame_at(file: BinaryIO, place: int) -> Frame | None:
    return parse(read_at(file, place, 4))


def tag_length(file: BinaryIO, place: int) -> int:
    """Bytes of an ID3 or APE tag that begins here; 0 where none does."""
    start = read_at(file, place, 32)
    if start[:3] == b"ID3" and len(start) >= 10:
        size = sum((start[6 + k] & 127) << 7 * (3 - k) for k in range(4))
        return 10 + size + (10 if start[5] & 16 else 0)
    if start[:3] == b"TAG":
        return 128
    if start[:8] == b"APETAGEX" and len(start) == 32:
        return int.from_bytes(start[12:16], "little") + (32 if start[23] & 0x20 else 0)
    return 0


def skip_tags(file: BinaryIO, place: int) -> int:
    while length := tag_length(file, place):
        place += length
    return place


def find_frame(file: BinaryIO, place: int, size: int) -> int | None:
    """Where, from `place` on, frames begin: one after the other, of one kind. Tags are jumped over."""
    while place < size:
        place = skip_tags(file, place)
        block = read_at(file, place, SEARCH)
        at = block.find(b"\xff")
        while at >= 0:
            if _is_run(file, place + at, size):
                return place + at
            at = block.find(b"\xff", at + 1)
        place += max(1, len(block))
    return None


def _is_run(file: BinaryIO, place: int, size: int, count: int = 3) -> bool:
    first = frame_at(file, place)
    for _ in range(count):
        frame = frame_at(file, place)
        if first is None or frame is None or (frame.rate, frame.mpeg1) != (first.rate, first.mpeg1):
            return False
        place += frame.length
        if place >= size:
            return True
    return True


def claims(file: BinaryIO, place: int) -> tuple[int, int] | None:
    """(frames, bytes) of the stream by its header frame's word, 0 where it does not say; None for a frame of sound."""
    start = read_at(file, place, 64)
    frame = parse(start)
    if frame is None:
        return None
    tag = start[frame.tag_at :]
    if tag[:4] in (b"Xing", b"Info"):
        has_frames, has_bytes = tag[7] & 1, tag[7] & 2
        values = [int.from_bytes(tag[k : k + 4], "big") for k in (8, 12)]
        return (values[0] if has_frames else 0), (values[1 if has_frames else 0] if has_bytes else 0)
    if start[36:40] == b"VBRI":
        return int.from_bytes(start[50:54], "big"), int.from_bytes(start[46:50], "big")
    return None


def count_frames(file: BinaryIO, place: int, size: int, most: int | None = None) -> tuple[int, int]:
    """(frames, end) of a run of frames from `place`: to a gap, a header frame, another kind, or `most` of them.

    What stands between frames without being a tag (damage) is jumped over and belongs to the run.
    """
    first = frame_at(file, place)
    count = 0
    while place < size and count != most and first is not None:
        frame = frame_at(file, place)
        if frame is None:
            if tag_length(file, place):
                break
            following = find_frame(file, place + 1, size)
            if following is None or claims(file, following) is not None:
                break
            if skip_tags(file, place) != place or (frame := frame_at(file, following)) is None:
                break
            place = following
        if frame.rate != first.rate or (count and claims(file, place) is not None):
            break
        count, place = count + 1, place + frame.length
    return count, min(place, size)


def header_frame(first: Frame, frames: int) -> bytes:
    """A frame that says how many follow it: silent, of the kind of `first`."""
    kbits = next(k for k in range(1, 15) if (f := _with_kbits(first, k)) is not None and f.length >= f.tag_at + 12)
    frame = _with_kbits(first, kbits)
    assert frame is not None
    tag = b"Info" + (1).to_bytes(4, "big") + frames.to_bytes(4, "big")
    return (frame.header + bytes(frame.tag_at - 4) + tag).ljust(frame.length, b"\0")


def _with_kbits(frame: Frame, kbits: int) -> Frame | None:
    a, b, c, d = frame.header
    return parse(bytes((a, b | 1, kbits << 4 | c & 0x0C, d)))  # | 1: no checksum


def size_of(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_size
