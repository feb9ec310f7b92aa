"""The recordings that one file holds, one after the other: files were joined by `cat`, streams chained.

libsndfile reads the first, and says nothing of the rest. Each part is opened here as a file of its own.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from . import mp3
from .mp3 import read_at, size_of

BLOCK = 1 << 20
FLAC = b"fLaC\x00\x00\x00\x22"  # the marker, and the head of the block that always comes first
W64 = b"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\x00\x00"


@dataclass(frozen=True)
class Part:
    """Bytes `begin` to `end` of a file, after the bytes `before`; `whole` where that is all of the file as it is."""

    begin: int
    end: int
    before: bytes = b""
    whole: bool = False


class PartFile(io.RawIOBase):
    """A part as a file, for reading."""

    def __init__(self, file: BinaryIO, part: Part) -> None:
        super().__init__()
        self._file, self._part, self._place = file, part, 0
        self._size = len(part.before) + part.end - part.begin

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        self._place = max(0, base + offset)
        return self._place

    def tell(self) -> int:
        return self._place

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._size - self._place)
        size = left if size < 0 else min(size, left)
        head = self._part.before[self._place : self._place + size]
        tail = b""
        if len(head) < size:
            inside = self._place + len(head) - len(self._part.before)
            tail = read_at(self._file, self._part.begin + inside, size - len(head))
        self._place += len(head) + len(tail)
        return head + tail

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def parts_of(file: BinaryIO) -> Iterator[Part]:
    """The parts of an audio file, in order, each looked for when the one before has been read."""
    size = size_of(file)
    magic = read_at(file, 0, 4)
    if magic == b"OggS":
        yield from _ogg(file, size)
    elif magic == b"fLaC" or (magic[:3] == b"ID3" and read_at(file, mp3.skip_tags(file, 0), 8) == FLAC):
        yield from _flac(file, size)
    elif _starts(read_at(file, 0, 16)):
        yield from _containers(file, size)
    elif (first := _mp3_begins(file, size)) is not None:
        yield from _mp3(file, first, size)
    else:
        yield Part(0, size, whole=True)


def _all_of(begin: int, end: int, size: int) -> Part:
    return Part(begin, end, whole=begin == 0 and end == size)


def _ogg(file: BinaryIO, size: int) -> Iterator[Part]:
    """Chained streams: one that begins after another's pages have come begins a part."""
    begin = place = 0
    headers = True  # the first pages, one of each stream that runs beside the others
    while place < size:
        page = read_at(file, place, 27)
        if page[:4] != b"OggS" or len(page) < 27:
            following = _find(file, b"OggS", place + 1, size)
            if following is None:
                break
            place = following
            continue
        first = bool(page[5] & 2)
        if first and not headers:
            yield Part(begin, place)
            begin = place
        headers = first
        place += 27 + page[26] + sum(read_at(file, place + 27, page[26]))
    yield _all_of(begin, size, size)


def _flac(file: BinaryIO, size: int) -> Iterator[Part]:
    begin = 0
    yield Part(0, size, whole=True)
    at = _find(file, FLAC, 0, size)
    while at is not None and (following := _find(file, FLAC, at + 1, size)) is not None:
        begin, at = following, following
        yield Part(begin, size)


def _find(file: BinaryIO, wanted: bytes, place: int, size: int) -> int | None:
    while place < size:
        block = read_at(file, place, BLOCK + len(wanted) - 1)
        if (at := block.find(wanted)) >= 0:
            return place + at
        place += BLOCK
    return None


def _starts(head: bytes) -> bool:
    """Whether a file of a container format with a length begins so."""
    kind, form = head[:4], head[8:12]
    if kind in (b"RIFF", b"RIFX", b"RF64"):
        return form == b"WAVE"
    return (kind == b"FORM" and form in (b"AIFF", b"AIFC")) or kind == b".snd" or head == W64 or head[:6] == b"caff\0\1"


def _containers(file: BinaryIO, size: int) -> Iterator[Part]:
    """Each ends where its header says; a part follows if another header stands there."""
    begin = 0
    while True:
        end = _declared_end(file, begin, size)
        following = next((e for e in (end, end + 1) if e < size and _starts(read_at(file, e, 16))), None)
        if following is None:
            yield _all_of(begin, size, size)
            return
        yield Part(begin, following)
        begin = following


def _declared_end(file: BinaryIO, begin: int, size: int) -> int:
    head = read_at(file, begin, 28)
    kind = head[:4]
    if kind == b"RF64":
        return begin + 8 + int.from_bytes(head[20:28], "little")
    if kind == b"RIFF":
        return begin + 8 + int.from_bytes(head[4:8], "little")
    if kind in (b"RIFX", b"FORM"):
        return begin + 8 + int.from_bytes(head[4:8], "big")
    if kind == b".snd":
        return begin + int.from_bytes(head[4:8], "big") + int.from_bytes(head[8:12], "big")
    if kind == b"riff":
        return begin + int.from_bytes(head[16:24], "little")
    place = begin + 8  # caff: chunk after chunk
    while place < size:
        chunk = read_at(file, place, 12)
        length = int.from_bytes(chunk[4:12], "big", signed=True)
        if len(chunk) < 12 or length < 0 or _starts(read_at(file, place, 16)):
            return size if length < 0 else place
        place += 12 + length
    return place


def _mp3_begins(file: BinaryIO, size: int) -> int | None:
    """Where the frames of an MP3 begin, after its tags; None for what is none, or is not of layer III."""
    place = mp3.skip_tags(file, 0)
    if mp3.frame_at(file, place) is not None:
        return place
    return mp3.find_frame(file, place, min(size, place + mp3.SEARCH)) if place else None


def _mp3(file: BinaryIO, begin: int, size: int) -> Iterator[Part]:
    """A part for every header frame that counts its own, and for every run of frames that none counts.

    The latter gets a header: decoders that lack one guess a length, and stop there.
    """
    place: int | None = begin
    while place is not None:
        first, claim = mp3.frame_at(file, place), mp3.claims(file, place)
        if claim is not None and claim[0]:
            frames, length = claim
            end = place + length if length else mp3.count_frames(file, place, size, most=frames + 1)[1]
            following = mp3.find_frame(file, end, size)
            yield _all_of(0 if place == begin else place, size if following is None else end, size)
        else:
            if claim is not None and first is not None:  # a header frame without a count
                place += first.length
            count, end = mp3.count_frames(file, place, size)
            following = mp3.find_frame(file, end, size)
            if first is not None and (count >= mp3.LEAST_FRAMES or place == begin):
                yield Part(place, end, before=mp3.header_frame(first, count))
        place = following
