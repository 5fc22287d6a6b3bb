"""What a slide's file says about a patient stays in it.

Slides are written with a name in every place that files have for one: descriptions, OME-XML, DICOM attributes, and the
picture of a label. They are segmented, exported and reported; then every byte that was written or printed is searched.
"""

from __future__ import annotations

import gzip
import json
import logging
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import tifffile
from test_cli import Cli, cli, write_model

from nucleipan.describe import KEPT
from nucleipan.exports import FORMATS, OF_RESULTS
from nucleipan.geometry import Box
from nucleipan.slide.metadata import MAX_TOTAL, MAX_VALUE, scanner_metadata
from nucleipan.store import PanopticStore
from nucleipan.synthetic import SyntheticScene

__all__ = ["cli"]  # the fixture

SHAPE = (192, 256)
PATIENT = "Zwiebelkorn"
CASE = "H19-77231"
SECRETS = (PATIENT, CASE, "Sankt-Nirgendwo", "20191224")
LABEL_COLOUR = (255, 0, 255)
OME = f"""<?xml version="1.0" encoding="UTF-8"?>
<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Experimenter ID="Experimenter:0" LastName="{PATIENT}"/>
<Image ID="Image:0" Name="{CASE}"><AcquisitionDate>20191224</AcquisitionDate><Pixels ID="Pixels:0" Type="uint8"
DimensionOrder="XYCZT" SizeX="{SHAPE[1]}" SizeY="{SHAPE[0]}" SizeC="3" SizeZ="1" SizeT="1" PhysicalSizeX="0.5"
PhysicalSizeY="0.5"><Channel ID="Channel:0:0" SamplesPerPixel="3"/><TiffData/></Pixels></Image></OME>"""


def picture() -> np.ndarray:
    return SyntheticScene(SHAPE, seed=5).rgb(Box.of_shape(SHAPE))


def write_aperio(path: Path) -> None:
    """With a thumbnail, a label and a macro image, all of whose pages tell who it is."""
    says = f"|AppMag = 20|MPP = 0.5|Patient = {PATIENT}|Barcode = {CASE}|Site = Sankt-Nirgendwo|Date = 20191224"
    label = np.full((40, 60, 3), LABEL_COLOUR, np.uint8)
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(
            picture(), tile=(128, 128), photometric="rgb", compression="jpeg", metadata=None,
            description=f"Aperio Image Library v11\r\n256x192 (128x128) JPEG Q=90{says}",
            extratags=[(315, 2, None, PATIENT, True)],
        )  # fmt: skip
        for kind in ("label", "macro"):
            tiff.write(
                label, rowsperstrip=40, photometric="rgb", metadata=None, subfiletype=9 if kind == "macro" else 1,
                description=f"Aperio Image Library v11\r\n{kind} 60x40 {PATIENT}",
            )  # fmt: skip


def write_ome(path: Path) -> None:
    tifffile.imwrite(path, picture(), photometric="rgb", description=OME, metadata=None, software="Sankt-Nirgendwo")


def write_dicom(path: Path) -> None:
    pydicom = pytest.importorskip("pydicom")
    header = pydicom.dataset.Dataset()
    header.file_meta = pydicom.dataset.FileMetaDataset()
    header.file_meta.MediaStorageSOPClassUID = header.SOPClassUID = pydicom.uid.VLWholeSlideMicroscopyImageStorage
    header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID = "1.2.3.1"
    header.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    header.PatientName, header.PatientID, header.InstitutionName = f"{PATIENT}^Anna", CASE, "Sankt-Nirgendwo"
    header.PatientBirthDate, header.SeriesInstanceUID, header.Modality = "20191224", "1.2.5", "SM"
    specimen = pydicom.dataset.Dataset()
    specimen.SpecimenIdentifier = f"{CASE}-A"
    header.SpecimenDescriptionSequence = [specimen]
    header.Rows, header.Columns = header.TotalPixelMatrixRows, header.TotalPixelMatrixColumns = SHAPE
    header.NumberOfFrames, header.DimensionOrganizationType = 1, "TILED_FULL"
    header.SamplesPerPixel, header.PhotometricInterpretation, header.PlanarConfiguration = 3, "RGB", 0
    header.BitsAllocated = header.BitsStored = 8
    header.HighBit, header.PixelRepresentation = 7, 0
    header.ImagedVolumeHeight, header.ImagedVolumeWidth = (side * 0.5 / 1000 for side in SHAPE)
    header.PixelData = picture().tobytes()
    header.save_as(path, enforce_file_format=True)


@pytest.fixture
def slides(tmp_path: Path) -> list[Path]:
    folder = tmp_path / "slides"
    folder.mkdir()
    paths = [folder / "aperio.svs", folder / "ome.tiff", folder / "dicom.dcm"]
    for write, path in zip((write_aperio, write_ome, write_dicom), paths, strict=True):
        write(path)
    return paths


def texts(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of every file, and what is inside those that are compressed."""
    for path in folder.rglob("*"):
        if path.is_file():
            name, data = path.relative_to(folder).as_posix(), path.read_bytes()
            yield name, data
            if name.endswith(".gz"):
                yield name, gzip.decompress(data)
            if name.endswith(".parquet"):
                table = pq.read_table(path)
                yield name, f"{table.schema.metadata} {table.to_pydict()}".encode()


def found_in(said: Iterator[tuple[str, bytes]]) -> set[str]:
    """Files that hold one of the secrets, in any usual encoding."""
    wanted = [secret.encode(coding) for secret in SECRETS for coding in ("utf-8", "utf-16-le", "utf-16-be")]
    return {name for name, data in said if any(secret in data for secret in wanted)}


@pytest.mark.slow
def test_nothing_of_the_patient_is_in_any_result(
    cli: Cli, slides: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out, model = tmp_path / "out", write_model(tmp_path / "tiny.safetensors", 0)
    caplog.set_level(logging.DEBUG)
    found = {path.name: scanner_metadata(path) for path in slides}
    assert all(PATIENT in repr(says) and CASE in repr(says) for says in found.values()), "there is something to find"
    wanted = [name for name in OF_RESULTS if FORMATS[name].extra != "dicom"]
    if not find_spec("spatialdata"):
        wanted = [name for name in wanted if FORMATS[name].extra != "spatial"]
    printed = [cli("segment", *slides, "--out", out, "--model", model, "--device", "cpu", "--overlay")]
    for slide in slides:
        stem, store = slide.stem, out / f"{slide.stem}.ome.zarr"
        # The slow ones once: what they read of a store is the same for every slide.
        for name in wanted if stem == "aperio" else ("geojson", "coco-panoptic", "ome-tiff"):
            path = out / f"{stem}{FORMATS[name].suffix}"
            printed.append(cli("export", store, "--format", name, "--out", path, "--slide", slide))
        printed += [cli("report", store, "--slide", slide, "--out", out / f"{stem}.html"), cli("info", store)]
        printed.append(cli("verify", store))
        shown = PanopticStore.open(store).overview()
        assert not (np.abs(shown.astype(int) - LABEL_COLOUR).sum(-1) < 60).any(), "the label is in the picture"
    assert [done.code for done in printed] == [0] * len(printed), [done.stderr for done in printed]
    assert (out / "summary.csv").is_file()
    said = {f"{done.stdout}{done.stderr}" for done in printed} | {record.getMessage() for record in caplog.records}
    assert found_in(iter([("printed", " ".join(said).encode())])) == set()
    assert found_in(texts(out)) == set()


def test_metadata_are_kept_when_asked_for_and_listed(cli: Cli, slides: list[Path], tmp_path: Path) -> None:
    out, model = tmp_path / "out", write_model(tmp_path / "tiny.safetensors", 0)
    arguments = ("segment", *slides, "--out", out, "--model", model, "--device", "cpu")
    assert cli(*arguments, "--keep-metadata").code == 0
    for path in slides:
        store = out / f"{path.stem}.ome.zarr"
        kept = PanopticStore.open(store).attributes["slide"]["metadata"]
        assert kept == scanner_metadata(path)
        assert json.loads(cli("info", store, "--json").stdout)[KEPT]["metadata"] == kept
        shown = cli("info", store).stdout
        assert f"{KEPT}:\n" in shown
        assert PATIENT in shown
        assert PATIENT in cli("info", path).stdout
        export = cli("export", store, "--format", "coco-panoptic", "--out", tmp_path / path.stem, "--slide", path)
        assert export.code == 0, export.stderr
        assert found_in(texts(tmp_path / path.stem)) == set(), "kept in the store, not in what is made from it"
    refused = cli(*arguments)
    assert refused.code == 1
    assert refused.stderr.count("slide.metadata.is: 'nothing' here, 'kept' there") == 3
    assert found_in(iter([("printed", refused.stderr.encode())])) == set(), "the error quotes no metadata"


def test_what_is_kept_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "talkative.tif"
    tags = [(65000 + i, 2, None, f"{i} " + "x" * 9000, True) for i in range(12)]
    tifffile.imwrite(path, picture(), photometric="rgb", metadata=None, extratags=tags)
    found = scanner_metadata(path)
    assert max(map(len, found.values())) == MAX_VALUE
    assert sum(len(name) + len(value) for name, value in found.items()) <= MAX_TOTAL + 100
    assert int(found["(left out)"].split()[0]) == 12 + 1 - len(found) + 1  # with tifffile's own tag "Software"
