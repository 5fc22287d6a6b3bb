"""Corrections of a store's nuclei, kept beside the original and never over it.

``EditLog.open(store)`` reads what was corrected; ``merge_nuclei`` and the others turn what a user chose or drew into
an ``Edit``, ``EditLog.append`` saves it. A log is read like a store, and
``open_corrected`` gives one to whatever reads stores. ``export_training`` cuts corrected fields into a
folder that ``nucleipan train`` reads.
"""

from nucleipan.edits.checked import CheckedField
from nucleipan.edits.corrected import corrected, open_corrected
from nucleipan.edits.edit import Edit, EditError, Kind, SavedEdit
from nucleipan.edits.log import EditLog, author_or_user
from nucleipan.edits.making import (
    change_class,
    delete_nuclei,
    merge_nuclei,
    nuclei_on_line,
    nucleus_in_polygon,
    redraw_nucleus,
    split_nuclei,
)
from nucleipan.edits.training_data import export_training, training_fields

__all__ = [
    "CheckedField",
    "Edit",
    "EditError",
    "EditLog",
    "Kind",
    "SavedEdit",
    "author_or_user",
    "change_class",
    "corrected",
    "delete_nuclei",
    "export_training",
    "merge_nuclei",
    "nuclei_on_line",
    "nucleus_in_polygon",
    "open_corrected",
    "redraw_nucleus",
    "split_nuclei",
    "training_fields",
]
