"""What the columns of the nuclei table are, for those that take them as they come."""

from __future__ import annotations

import pyarrow as pa


def is_number(kind: pa.DataType) -> bool:
    """Whether a column of this type holds a number for each nucleus."""
    return pa.types.is_integer(kind) or pa.types.is_floating(kind)
