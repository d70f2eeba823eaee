"""Compressed pixels without the words that compressors leave in them.

A JPEG code stream may hold comments, EXIF with names and places, thumbnails and whatever else an application puts into
its segments; JPEG 2000 has comments, too; and behind a stream may come bytes that no decoder looks at. All of these
are overwritten with zeros. No byte moves, so offset tables stay right and the image decodes as before.
"""

from __future__ import annotations

import re

from voxscore.deidentify.refusal import Refusal

__all__ = ["blank_comments"]

_JPEG = {f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 57, 70, 80, 81)}
_JPEG_2000 = {f"1.2.840.10008.1.2.4.{n}" for n in (90, 91, 92, 93, 201, 202, 203)}
_ITEM, _DELIMITER = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"
_START = {"jpeg": re.compile(rb"\xff\xd8\xff"), "jpeg 2000": re.compile(rb"\xff\x4f\xff\x51")}
_AFTER_SCAN = re.compile(rb"\xff[\x80-\xcf\xd8-\xfe]")  # what coded data cannot hold, in JPEG and in JPEG-LS
_JFIF_HEADER = 14
# Segments of applications that say how to read the colours: Adobe's, and JPEG-LS's transform.
_COLOUR = {0xEE: b"Adobe", 0xE8: b"mrfx"}


def blank_comments(content: bytes, syntax: str) -> bytes:
    """Return encapsulated pixel data of the same length without comments and the like.

    Args:
        content: the value of Pixel Data, items with their tags and lengths.
        syntax: UID of the transfer syntax; those without such segments are returned as they are.

    Raises:
        Refusal: not the code streams that the syntax promises.
    """
    kind = "jpeg" if syntax in _JPEG else "jpeg 2000" if syntax in _JPEG_2000 else ""
    if not kind:
        return content
    places = _fragments(content)
    stream = bytearray(b"".join(content[start:end] for start, end in places))
    walk = _walk_jpeg if kind == "jpeg" else _walk_jpeg_2000
    end = 0
    try:
        while (found := _START[kind].search(stream, end)) is not None:
            if end == 0 and found.start() > 0:
                raise _unreadable()
            _zero(stream, end, found.start())
            end = walk(stream, found.start())
    except IndexError as error:
        raise _unreadable() from error
    if end == 0:
        raise _unreadable()
    _zero(stream, end, len(stream))
    new, read = bytearray(content), 0
    for start, stop in places:
        new[start:stop] = stream[read : read + stop - start]
        read += stop - start
    return bytes(new)


def _fragments(content: bytes) -> list[tuple[int, int]]:
    """Where the items lie, the first, of offsets, left out."""
    places, at = [], 0
    while at + 8 <= len(content) and content[at : at + 4] == _ITEM:
        length = int.from_bytes(content[at + 4 : at + 8], "little")
        places.append((at + 8, at + 8 + length))
        at += 8 + length
    if not places or at > len(content) or content[at : at + 4] not in (b"", _DELIMITER):
        raise _unreadable()
    return places[1:]


def _walk_jpeg(stream: bytearray, at: int) -> int:
    """Blank the segments of a JPEG or JPEG-LS stream that starts at `at`, and return where it ends."""
    at += 2
    while True:
        if stream[at] != 0xFF:
            raise _unreadable()
        marker = stream[at + 1]
        if marker == 0xFF:  # fill
            at += 1
        elif marker == 0xD9:
            return at + 2
        elif marker == 0x01 or 0xD0 <= marker <= 0xD7:
            at += 2
        else:
            end = at + 2 + _length(stream, at + 2)
            _blank_segment(stream, marker, at + 4, end)
            at = end
            if marker == 0xDA:
                after = _AFTER_SCAN.search(stream, at)
                if after is None:  # without an end of image, as some write it
                    return len(stream)
                at = after.start()


def _blank_segment(stream: bytearray, marker: int, start: int, end: int) -> None:
    if marker == 0xFE:
        _zero(stream, start, end)
    elif marker == 0xE0 and stream[start : start + 5] == b"JFIF\0":
        _zero(stream, start + _JFIF_HEADER, end)
    elif 0xE0 <= marker <= 0xEF and not (marker in _COLOUR and stream.startswith(_COLOUR[marker], start)):
        _zero(stream, start, end)


def _walk_jpeg_2000(stream: bytearray, at: int) -> int:
    """Blank the comments of a JPEG 2000 stream that starts at `at`, and return where it ends."""
    at += 2
    tile_end = 0
    while True:
        if at == len(stream):  # without an end of code stream
            return at
        if stream[at] != 0xFF:
            raise _unreadable()
        marker = stream[at + 1]
        if marker == 0xD9:
            return at + 2
        if marker == 0x93:  # coded data, to the end of the tile part
            at = tile_end
            continue
        end = at + 2 + _length(stream, at + 2)
        if marker == 0x90:
            length = int.from_bytes(stream[at + 6 : at + 10], "big")
            # A length of 0 means that the tile part is the last.
            tile_end = at + length if length else _last_end(stream, at)
            if not end <= tile_end <= len(stream):
                raise _unreadable()
        elif marker == 0x64:
            _zero(stream, at + 4, end)
        at = end


def _last_end(stream: bytearray, at: int) -> int:
    following = _START["jpeg 2000"].search(stream, at)
    end = stream.rfind(b"\xff\xd9", at, following.start() if following else len(stream))
    if end < 0:
        raise _unreadable()
    return end


def _length(stream: bytearray, at: int) -> int:
    length = stream[at] << 8 | stream[at + 1]
    if length < 2 or at + length > len(stream):
        raise _unreadable()
    return length


def _zero(stream: bytearray, start: int, end: int) -> None:
    stream[start:end] = bytes(max(0, end - start))


def _unreadable() -> Refusal:
    return Refusal("its compressed pixels are not what its transfer syntax says")
