"""MoNuSAC and MoNuSeg: images, and outlines drawn in Aperio ImageScope.

MoNuSAC (Verma et al., IEEE Transactions on Medical Imaging 2021)::

    <patient>/<patient>_1.tif      or .svs; where both exist, the TIFF is read
    <patient>/<patient>_1.xml

MoNuSeg (Kumar et al., IEEE Transactions on Medical Imaging 2017 and 2020)::

    Tissue Images/<stem>.tif       Annotations/<stem>.xml, or both in one folder, as the test set has them

In the XML an ``Annotation`` is a layer, named after the class in MoNuSAC, and each of its ``Region``s a nucleus.
Regions with fewer than three vertices (clicks, lines) and those of the negative pen are no nuclei. What lies in
MoNuSAC's ``Ambiguous`` regions, where even its experts could not say, is unknown.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from functools import partial
from pathlib import Path

from nucleipan.datasets._documents import read_xml
from nucleipan.datasets._folders import IMAGE_SUFFIXES, by_stem, listed, paired, subfolders
from nucleipan.datasets._outlines import Outline, checked_ring, draw_ids, draw_regions
from nucleipan.datasets._pixels import read_rgb
from nucleipan.datasets.annotated import Annotated, Item
from nucleipan.errors import DataError
from nucleipan.geometry import Box

_AMBIGUOUS = "Ambiguous"


def read_monusac(folder: Path) -> list[Item]:
    """Names are ``patient/stem`` (or ``stem`` for files in ``folder`` itself), codes the names of the layers.

    Raises:
        DataError: nothing is laid out like this, or an image or XML file lacks its partner.
    """
    items = []
    for part in (folder, *subfolders(folder)):
        prefix = "" if part == folder else f"{part.name}/"
        images = by_stem((".svs",), part) | by_stem(IMAGE_SUFFIXES, part)
        for stem, image, label in paired(images, by_stem((".xml",), part), part):
            items.append(Item(prefix + stem, label, partial(_load, image, label, has_classes=True)))
    return listed(folder, items, "a subfolder per patient of .tif or .svs images and .xml files with the same stems")


def read_monuseg(folder: Path) -> list[Item]:
    """Names are stems; there are no codes.

    Raises:
        DataError: nothing is laid out like this, or an image or XML file lacks its partner.
    """
    is_flat = not (folder / "Tissue Images").is_dir()
    images, labels = (folder, folder) if is_flat else (folder / "Tissue Images", folder / "Annotations")
    pairs = paired(by_stem(IMAGE_SUFFIXES, images), by_stem((".xml",), labels), labels)
    items = [Item(stem, label, partial(_load, image, label, has_classes=False)) for stem, image, label in pairs]
    return listed(folder, items, "Tissue Images/*.tif and Annotations/*.xml, or .tif and .xml files side by side")


def _load(image: Path, label: Path, has_classes: bool) -> Annotated:
    pixels = read_rgb(image)
    box = Box.of_shape(pixels.shape[:2])
    outlines = _outlines(label, has_classes)
    ids, codes = draw_ids([o for o in outlines if o.code != _AMBIGUOUS], label, box)
    ambiguous = [o for o in outlines if o.code == _AMBIGUOUS]
    unknown = draw_regions(ambiguous, label, box)[0] > 0 if ambiguous else None
    return Annotated(pixels, ids, codes, unknown=unknown)


def _outlines(path: Path, has_classes: bool) -> list[Outline]:
    root = read_xml(path)
    if root.tag != "Annotations":
        raise DataError(f"{path}: starts with <{root.tag[:40]}>; expected <Annotations> as ImageScope writes it")
    found = []
    for layer in root.iter("Annotation"):
        attribute = layer.find("Attributes/Attribute")
        name = attribute.get("Name") if has_classes and attribute is not None else None
        for region in layer.iterfind("Regions/Region"):
            vertices = [_point(path, vertex) for vertex in region.iterfind("Vertices/Vertex")]
            if len(vertices) >= 3 and region.get("NegativeROA") != "1":
                found.append(Outline((checked_ring(path, vertices),), name or None))
    return found


def _point(path: Path, vertex: ET.Element) -> tuple[float, float]:
    try:
        return float(vertex.get("X", "")), float(vertex.get("Y", ""))
    except ValueError as error:
        raise DataError(f"{path}: a vertex lacks its X or Y; found {dict(vertex.attrib)!s:.80}") from error
