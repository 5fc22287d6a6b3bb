"""Text from files, made fit to be shown: a page's escaping does not stop characters that hide or reverse others."""

from __future__ import annotations

import unicodedata

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_UNPRINTABLE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


def printable(text: str) -> str:
    """``text`` with a mark in place of every character that does not show, or that changes how others show."""
    return "".join(_REPLACEMENT if unicodedata.category(c) in _UNPRINTABLE else c for c in text)


def shortened(text: str, length: int = 28) -> str:
    """``text``, printable, on one line of at most ``length`` characters."""
    text = printable(" ".join(text.split()))
    return text if len(text) <= length else text[: length - 1] + "…"
