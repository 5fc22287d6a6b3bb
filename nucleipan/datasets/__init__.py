"""Annotated images in the layouts that researchers have, read into one form.

Each layout has a function that lists a folder's images as ``Item``s; an item is read when it is loaded. ``LAYOUTS``
has them by name, for configurations.

| layout | what the folder holds | names | codes |
|---|---|---|---|
| ``nuclei`` | ``images/``, ``labels/`` of instance ids, optionally ``classes/*.json`` | ``a`` | the JSON's values |
| ``tissue`` | ``images/``, ``labels/`` with a code per pixel | ``a`` | ``0`` to ``255`` |
| ``texture`` | a folder of images per class | ``TUM/a`` | the folder's name |
| ``pannuke`` | PanNuke's folds: ``images.npy``, ``masks.npy`` | ``fold1/0000`` | ``Neoplastic``, ... |
| ``consep`` | CoNSeP's ``Train/``, ``Test/`` of ``Images/``, ``Labels/*.mat`` | ``Train/a`` | ``1`` to ``7`` |
| ``lizard`` | Lizard's ``Lizard_Images1/``, ..., ``Labels/*.mat`` | ``a`` | ``1`` to ``6`` |
| ``monusac`` | MoNuSAC's folder per patient, ImageScope XML | ``patient/a`` | ``Epithelial``, ... |
| ``monuseg`` | MoNuSeg's ``Tissue Images/``, ``Annotations/``, or all in one folder | ``a`` | none |
| ``coco-panoptic`` | COCO panoptic JSON, PNG of segment ids, ``images/`` | ``json/a`` | category names |
| ``cityscapes`` | ``leftImg8bit/``, ``gtFine/*_instanceIds.png`` | ``train/a`` | label names |
| ``pastis``, ``pastis-mean`` | PASTIS' Sentinel-2 series, by median or mean | ``fold1/10000`` | class names |
| ``qupath`` | images or slides, QuPath's GeoJSON beside each | ``a``, ``a/y0_x0`` | classifications |

Files are not trusted: nothing is unpickled, XML with entities is refused, and what contradicts itself is a
``DataError`` that names the file.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

from nucleipan.datasets.annotated import Annotated, Item, checked
from nucleipan.datasets.cityscapes import read_cityscapes
from nucleipan.datasets.coco_panoptic import read_coco_panoptic
from nucleipan.datasets.consep_lizard import read_consep, read_lizard
from nucleipan.datasets.label_images import read_nuclei, read_tissue
from nucleipan.datasets.monusac_monuseg import read_monusac, read_monuseg
from nucleipan.datasets.pannuke import read_pannuke
from nucleipan.datasets.pastis import read_pastis, write_composites
from nucleipan.datasets.qupath import read_qupath
from nucleipan.datasets.texture import read_texture

Layout = Literal[
    "nuclei",
    "tissue",
    "texture",
    "pannuke",
    "consep",
    "lizard",
    "monusac",
    "monuseg",
    "coco-panoptic",
    "cityscapes",
    "pastis",
    "pastis-mean",
    "qupath",
]

LAYOUTS: dict[Layout, Callable[[Path], list[Item]]] = {
    "nuclei": read_nuclei,
    "tissue": read_tissue,
    "texture": read_texture,
    "pannuke": read_pannuke,
    "consep": read_consep,
    "lizard": read_lizard,
    "monusac": read_monusac,
    "monuseg": read_monuseg,
    "coco-panoptic": read_coco_panoptic,
    "cityscapes": read_cityscapes,
    "pastis": read_pastis,
    "pastis-mean": partial(read_pastis, reduction="mean"),
    "qupath": read_qupath,
}

__all__ = [
    "LAYOUTS",
    "Annotated",
    "Item",
    "Layout",
    "checked",
    "read_cityscapes",
    "read_coco_panoptic",
    "read_consep",
    "read_lizard",
    "read_monusac",
    "read_monuseg",
    "read_nuclei",
    "read_pannuke",
    "read_pastis",
    "read_qupath",
    "read_texture",
    "read_tissue",
    "write_composites",
]
