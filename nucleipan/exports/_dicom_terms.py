"""How DICOM objects say what nucleipan found: coded classes, the algorithm, unique identifiers.

A class is coded twice. The *type* is the nearest concept of SNOMED CT or DICOM (PS3.16 CID 8135 for nuclei, 7151 and
7165 for tissue), so that any receiver understands it; a *modifier* from the private scheme 99NUCLEIPAN names the class
exactly. Tissue for which the dictionaries have no concept has the private code as its type.

Identifiers are made from what an object is made of: exporting the same store of the same slide again gives the same
object, not a second one.
"""

from __future__ import annotations

import json
import uuid
from datetime import datetime
from typing import Any

import highdicom
from highdicom import AlgorithmIdentificationSequence
from highdicom.coding_schemes import CodingSchemeIdentificationItem
from highdicom.color import CIELabColor
from highdicom.sr import CodedConcept
from pydicom import Dataset
from pydicom.sr.codedict import Code, codes
from pydicom.uid import UID

from nucleipan import __version__
from nucleipan.classes import PanopticClass
from nucleipan.geometry import Box
from nucleipan.store import PanopticStore

SCHEME = "99NUCLEIPAN"

_NAMESPACE = uuid.UUID("0d0f2f4e-5f0b-5c57-8a0e-2f6b1b1f9d3a")
_SCT, _DCM = codes.SCT, codes.DCM
# Category (CID 7150) and type.
_NUCLEUS: tuple[Code, Code | None] = (_SCT.AnatomicalStructure, _SCT.Nucleus)
_TISSUE: dict[str, tuple[Code, Code | None]] = {
    "background": (_SCT.SpatialAndRelationalConcept, _DCM.Background),
    "tumour epithelium": (_SCT.MorphologicallyAbnormalStructure, _SCT.Neoplasm),
    "stroma": (_SCT.Tissue, _SCT.ConnectiveTissue),
    "lymphoid": (_SCT.Tissue, _SCT.LymphoidTissue),
    "smooth muscle": (_SCT.Tissue, _SCT.MuscleTissue),
    "adipose": (_SCT.Tissue, _SCT.AdiposeTissue),
    "mucus": (_SCT.BodySubstance, None),
    "necrosis or debris": (_SCT.MorphologicallyAbnormalStructure, _SCT.Necrosis),
}


def private(value: str, meaning: str | None = None) -> CodedConcept:
    """A concept of nucleipan's own."""
    return CodedConcept(text(value), SCHEME, text(meaning or value))


def category_and_type(c: PanopticClass) -> tuple[CodedConcept, CodedConcept]:
    """Property category and property type of a class; the type has the class as its modifier, unless it is that."""
    category, kind = (
        (_SCT.AnatomicalStructure, _SCT.Nucleus) if c.is_thing else _TISSUE.get(c.name, (_SCT.Tissue, None))
    )
    own = private(c.name)
    return CodedConcept.from_code(category), own if kind is None else CodedConcept.from_code(kind)


def add_modifier(kind: Dataset, keyword: str, c: PanopticClass) -> None:
    """Give a property type, an item of a code sequence, its class as modifier under ``keyword``."""
    if kind.CodingSchemeDesignator != SCHEME:
        setattr(kind, keyword, [private(c.name)])


def color(c: PanopticClass) -> CIELabColor:
    return CIELabColor.from_rgb(*c.color)


def algorithm_type(store: PanopticStore) -> str:
    """Whether people had a hand in it (PS3.3 C.8.20.2 and C.37.1.2)."""
    return "SEMIAUTOMATIC" if store.corrections else "AUTOMATIC"


def algorithm(store: PanopticStore) -> AlgorithmIdentificationSequence:
    """nucleipan in the version that segmented the slide, with the model's name and hash."""
    model = {key: str(store.model.get(key, "unknown")) for key in ("name", "sha256")}
    return AlgorithmIdentificationSequence(
        text(f"nucleipan {model['name']}"),
        codes.cid7162.ArtificialIntelligence,
        _version(store),
        "nucleipan",
        {"model": model["name"], "sha256": model["sha256"]},
    )


def text(value: str, limit: int = 64) -> str:
    """``value`` as text of one line without DICOM's separator, ``\\``; at most ``limit`` characters (PS3.5, LO)."""
    clean = "".join(c if c.isprintable() and c != "\\" else " " for c in value)
    return " ".join(clean.split())[:limit].strip() or "unnamed"


def uid_of(*parts: Any) -> UID:
    """The UID of a UUID (PS3.5 B.2) made from ``parts``, which are JSON-ready."""
    return UID(f"2.25.{uuid.uuid5(_NAMESPACE, json.dumps(parts, sort_keys=True)).int}")


def identity(store: PanopticStore, referred: Dataset, what: str, roi: Box | None) -> dict[str, Any]:
    """The arguments that tell highdicom's objects which one they are, who made them and when.

    ``referred`` is the image that the object lies on, ``what`` describes it for people. The content's date is that of
    the store.
    """
    made = datetime.fromtimestamp((store.path / "zarr.json").stat().st_mtime).replace(microsecond=0)
    part = None if roi is None else [roi.y0, roi.x0, roi.y1, roi.x1]
    origin = [store.spec.to_dict(), store.corrections, str(referred.SOPInstanceUID), what, made.isoformat(), part]
    version = [__version__, highdicom.__version__]
    return {
        "series_instance_uid": uid_of("series", origin, version),
        "sop_instance_uid": uid_of("instance", origin, version),
        "series_number": 1,
        "instance_number": 1,
        "series_description": text(what),
        "manufacturer": "nucleipan",
        "manufacturer_model_name": text(str(store.model.get("name", "unknown"))),
        "device_serial_number": text(str(store.model.get("sha256", "unknown"))),
        "software_versions": _version(store),
        "content_date": made.date(),
        "content_time": made.time(),
        "coding_schemes": [CodingSchemeIdentificationItem(SCHEME, "Classes of nucleipan's models")],
        # Whatever the slide's is: class names may be in any language.
        "specific_character_set": "ISO_IR 192",
    }


def settle(dataset: Dataset) -> None:
    """Take out the times at which highdicom ran: they would make two equal objects differ."""
    for keyword in ("InstanceCreationDate", "InstanceCreationTime"):
        if keyword in dataset:
            del dataset[keyword]
    for equipment in dataset.get("ContributingEquipmentSequence", ()):
        if "ContributionDateTime" in equipment:
            del equipment["ContributionDateTime"]


def _version(store: PanopticStore) -> str:
    return text(str(store.config.get("nucleipan", __version__)))
