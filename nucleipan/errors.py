"""Errors a user can act on.

Every error says what was attempted, what was found, what was expected and what to do, in one line::

    NucleipanError
    |-- SlideError (ValueError)          a slide cannot be read or understood
    |   `-- MissingPixelSizeError        it carries no micrometres per pixel
    |-- RegionError (ValueError)         a box or ROI does not fit the slide
    |-- ModelError (ValueError)          weights or network configuration do not fit
    |-- ConfigError (ValueError)         a configuration value is wrong or unknown
    |-- DataError (ValueError)           training or evaluation data are inconsistent
    `-- StoreError (ValueError)          a panoptic store is missing, foreign, damaged or unfinished

Each is also the built-in error it refines, so that ``except ValueError`` keeps working. The command line
prints the message alone and chooses the exit code.
"""

import unicodedata


class NucleipanError(Exception):
    """Anything nucleipan refuses to do, with a message for the user."""


class SlideError(NucleipanError, ValueError):
    """A slide cannot be opened, read or understood."""


class MissingPixelSizeError(SlideError):
    """A slide carries no pixel size and none was given."""


class RegionError(NucleipanError, ValueError):
    """A box or region of interest does not fit the slide."""


class ModelError(NucleipanError, ValueError):
    """A weights file or network configuration is missing, damaged or does not fit."""


class ConfigError(NucleipanError, ValueError):
    """A configuration value is unknown, missing or out of range."""


class DataError(NucleipanError, ValueError):
    """Training or evaluation data are missing or contradict each other."""


class StoreError(NucleipanError, ValueError):
    """A panoptic store is missing, unfinished, damaged or belongs to something else."""


def printable(text: object) -> str:
    r"""``text`` on one line of characters that can be seen, for a terminal or a log.

    What moves the cursor, ends lines, turns the direction of writing or is no character at all becomes its escape, such
    as ``\x1b``: names in files and of files come from outside.
    """
    return "".join(
        c if c.isprintable() or unicodedata.category(c) == "Zs" else c.encode("unicode_escape").decode("ascii")
        for c in str(text)
    )


def reason(error: BaseException) -> str:
    """What another package's error says, on one line and not endless."""
    return " ".join(str(error).split())[:200] or type(error).__name__
