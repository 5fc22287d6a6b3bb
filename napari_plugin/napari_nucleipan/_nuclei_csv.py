"""Some nuclei as CSV, in an order of one's own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from nucleipan.files import open_to_write, whole_file

# What a spreadsheet would run; names of classes and columns come from a weights file.
_FORMULA = r"^([=+\-@\t\r\n])"
_ROWS = 65_536


def write_csv(path: Path, columns: Mapping[str, np.ndarray], ids: np.ndarray) -> None:
    """Write a row for each of ``ids``, int64[n], with its values in ``columns``, [n_ids] by id.

    A missing number is an empty cell; an apostrophe goes before text that a spreadsheet would take for a formula.

    Raises:
        DataError: the file cannot be written; what was there before is left as it was.
    """
    names = [re.sub(_FORMULA, r"'\1", name) for name in columns]

    def rows(part: np.ndarray) -> pa.Table:
        return pa.table([_cells(values[part]) for values in columns.values()], names)

    with (
        whole_file(path) as temporary,
        open_to_write(temporary) as file,
        pyarrow.csv.CSVWriter(file, rows(ids[:0]).schema) as writer,
    ):
        for start in range(0, len(ids), _ROWS):
            writer.write_table(rows(ids[start : start + _ROWS]))


def _cells(values: np.ndarray) -> pa.Array:
    if values.dtype != object:
        return pa.array(values, from_pandas=True)  # NaN is null
    return pc.replace_substring_regex(pa.array(values, pa.string()), pattern=_FORMULA, replacement=r"'\1")
