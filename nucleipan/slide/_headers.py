"""Sizes that compressed images claim, read from their headers before anything is decoded.

A few bytes can claim an image of gigabytes. Each function looks at the bytes only, never allocates, and returns
None where it does not recognise them.
"""

from __future__ import annotations

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
JPEG_MAGIC = b"\xff\xd8\xff"
JPEG_END = b"\xff\xd9"
_J2K_MAGIC = b"\xff\x4f\xff\x51"

# Markers that start a frame (T.81, table B.1): C0-CF without DHT (C4), JPG (C8) and DAC (CC).
_JPEG_FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


_SCAN = b"\xff\xda"
_PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
_MAX_SCANNED_PIXELS = 2**31
_MAX_PROGRESSIVE_PIXELS = 2**27


def claimed_shape(data: bytes) -> tuple[int, int] | None:
    """(height, width) that a JPEG, PNG or JPEG 2000 image says it has."""
    if data[4:8] == b"jP  ":  # boxes around a codestream
        data = data[max(0, data.find(_J2K_MAGIC)) :]
    if data.startswith(PNG_MAGIC) and len(data) >= 24:
        return _big(data, 20, 4), _big(data, 16, 4)
    if data.startswith(_J2K_MAGIC) and len(data) >= 24:
        # SIZ (15444-1, A.5.1): Rsiz at 6, then Xsiz, Ysiz, XOsiz, YOsiz.
        return _big(data, 12, 4) - _big(data, 20, 4), _big(data, 8, 4) - _big(data, 16, 4)
    frame = _jpeg_frame(data)
    return frame[1:] if frame is not None else None


def is_endless_jpeg(data: bytes) -> bool:
    """Whether a progressive JPEG would take minutes or gigabytes: every scan goes over all of it, and it is kept whole
    as coefficients until the last. Encoders write about ten scans."""
    frame = _jpeg_frame(data)
    if frame is None or frame[0] not in _PROGRESSIVE:
        return False
    n_pixels = frame[1] * frame[2]
    return n_pixels > _MAX_PROGRESSIVE_PIXELS or n_pixels * data.count(_SCAN) > _MAX_SCANNED_PIXELS


def _jpeg_frame(data: bytes) -> tuple[int, int, int] | None:
    """Marker, height and width of the frame of a JPEG."""
    if not data.startswith(b"\xff\xd8"):
        return None
    at = 2
    while at + 9 <= len(data):
        if data[at] != 0xFF:
            return None
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
        elif marker in _JPEG_FRAME_MARKERS:
            return marker, _big(data, at + 5, 2), _big(data, at + 7, 2)
        elif marker == 0x01 or 0xD0 <= marker <= 0xD8:
            at += 2
        else:
            at += 2 + max(2, _big(data, at + 2, 2))
    return None


def _big(data: bytes, at: int, size: int) -> int:
    return int.from_bytes(data[at : at + size], "big")
