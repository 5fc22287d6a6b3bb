"""The panoptic store: ``<stem>.ome.zarr`` with its label images, its table of nuclei and what produced it.

``open_or_resume`` starts or takes up a run, ``Run.publish`` finishes it, ``PanopticStore.open`` reads the result.
Neither needs torch or monai.
"""

from nucleipan.store.arrays import LabelArray, StoredArray
from nucleipan.store.checksums import CHECKSUMS, Finding, damaged_files, read_checksums, refuse_damaged
from nucleipan.store.reader import PanopticStore, is_own_store
from nucleipan.store.run import Run, exclusive, open_or_resume, partial_path
from nucleipan.store.spec import STORE_VERSION, StoreSpec

__all__ = [
    "CHECKSUMS",
    "STORE_VERSION",
    "Finding",
    "LabelArray",
    "PanopticStore",
    "Run",
    "StoreSpec",
    "StoredArray",
    "damaged_files",
    "exclusive",
    "is_own_store",
    "open_or_resume",
    "partial_path",
    "read_checksums",
    "refuse_damaged",
]
