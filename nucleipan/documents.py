"""Files and texts from outside, read without being believed.

A name may stand for a pipe that never ends, a document may nest until the stack is full, and XML may define entities
that grow without bound. Each function answers with an ``OSError`` or ``ValueError``, which the
caller turns into its own error.
"""

from __future__ import annotations

import json
import re
import stat
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any


def plain_bytes(path: Path, max_bytes: int) -> bytes:
    """The content of a file.

    Raises:
        OSError: it is no plain file (a pipe would be waited for), holds more than ``max_bytes``, or cannot be read.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError("it is no file")
    if status.st_size > max_bytes:
        raise OSError(f"it holds more than {max_bytes:,} bytes")
    return path.read_bytes()


def json_value(text: str | bytes) -> Any:
    """What a JSON document says.

    Raises:
        ValueError: it is none, or nests deeper than Python can follow.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it nests too deeply") from None


def xml_root(text: str) -> ET.Element:
    """The root of an XML document, whatever encoding it declares: what is searched here is what is parsed.

    Raises:
        ValueError: it is none, or declares a document type or entities.
    """
    if re.search("<!(DOCTYPE|ENTITY)", text, re.IGNORECASE):
        raise ValueError("it declares a document type or entities; expected plain XML")
    try:
        return ET.fromstring(text)
    except ET.ParseError as error:
        raise ValueError(str(error)) from error
