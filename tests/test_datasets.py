"""Data sets: one ground truth, written in each published layout, comes back the same; what is broken is refused."""

from __future__ import annotations

import gzip
import json
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args
from xml.sax.saxutils import quoteattr

import imagecodecs
import numpy as np
import pytest
import scipy.io
import shapely
import tifffile
from scipy import ndimage
from skimage.measure import points_in_poly

from nucleipan.datasets import (
    LAYOUTS,
    Annotated,
    Item,
    Layout,
    _documents,
    _pixels,
    checked,
    read_coco_panoptic,
    read_consep,
    read_lizard,
    read_monusac,
    read_monuseg,
    read_nuclei,
    read_pannuke,
    read_qupath,
    read_texture,
    read_tissue,
)
from nucleipan.datasets._outlines import Outline, draw_ids, draw_regions, fill
from nucleipan.datasets.pannuke import CLASSES
from nucleipan.errors import DataError, SlideError
from nucleipan.geometry import Box
from nucleipan.polygons import trace_labels

SHAPE = (56, 72)


@dataclass(frozen=True)
class Truth:
    """``classes`` are numbers from 1 to 5 by id; ids count from 1."""

    image: np.ndarray
    ids: np.ndarray
    classes: dict[int, int]

    def polygons(self) -> list[shapely.Polygon]:
        boxes = [(y.start, x.start, y.stop, x.stop) for y, x in ndimage.find_objects(self.ids)]
        return list(trace_labels(self.ids, np.array(boxes, np.int32)))


def make_truth(seed: int) -> Truth:
    """Discs on a jittered lattice, cut where they touch; some reach over the border."""
    rng = np.random.default_rng(seed)
    lattice = np.stack(np.mgrid[6 : SHAPE[0] : 13, 2 : SHAPE[1] : 13], -1).reshape(-1, 2)
    centers = lattice + rng.uniform(-3, 3, lattice.shape)
    distance = np.hypot(*(np.indices(SHAPE)[:, None] - centers.T[..., None, None]))
    ids = np.where(distance.min(0) < 6.5, 1 + distance.argmin(0), 0).astype(np.int32)
    classes = {i: 1 + i % 5 for i in range(1, len(centers) + 1)}
    return Truth(rng.integers(0, 256, (*SHAPE, 3), np.uint8), ids, classes)


@pytest.fixture(scope="module")
def truths() -> dict[str, Truth]:
    return {"b.1": make_truth(0), "a": make_truth(1)}


# -- one writer for each layout -----------------------------------------------------------------------------------


def write_image(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix in (".tif", ".svs"):
        tifffile.imwrite(path, image, compression="deflate")
    else:
        path.write_bytes(imagecodecs.png_encode(image))


def write_json(path: Path, document: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))


def write_nuclei(folder: Path, truths: dict[str, Truth]) -> None:
    for stem, truth in truths.items():
        write_image(folder / "images" / f"{stem}.png", truth.image)
        write_image(folder / "labels" / f"{stem}.png", truth.ids.astype(np.uint16))
        write_json(folder / "classes" / f"{stem}.json", truth.classes)


def write_pannuke(folder: Path, truths: dict[str, Truth], base: str = "Fold 1", dtype: type = np.float64) -> None:
    masks = []
    for truth in truths.values():
        channels = [np.where(np.isin(truth.ids, of_class(truth, k)), truth.ids, 0) for k in range(1, 6)]
        masks.append(np.stack([*channels, truth.ids == 0], -1))
    arrays = {"images": np.stack([t.image for t in truths.values()]), "masks": np.stack(masks)}
    for name, array in arrays.items():
        (folder / base / name / "fold1").mkdir(parents=True)
        np.save(folder / base / name / "fold1" / f"{name}.npy", array.astype(dtype))


def of_class(truth: Truth, number: int) -> list[int]:
    return [i for i, c in truth.classes.items() if c == number]


def write_consep(folder: Path, truths: dict[str, Truth], part: str = "Train", **changes: Any) -> None:
    for stem, truth in truths.items():
        write_image(folder / part / "Images" / f"{stem}.png", truth.image)
        types = np.array([0, *truth.classes.values()])
        arrays = {"inst_map": truth.ids.astype(float), "type_map": types[truth.ids].astype(float)}
        arrays |= {"inst_type": types[1:, None], "inst_centroid": np.zeros((len(types) - 1, 2))}
        write_mat(folder / part / "Labels" / f"{stem}.mat", arrays | changes)


def write_lizard(folder: Path, truths: dict[str, Truth], labels: str = "Lizard_Labels/Labels", **changes: Any) -> None:
    for k, (stem, truth) in enumerate(truths.items(), start=1):
        write_image(folder / f"Lizard_Images{k}" / f"{stem}.png", truth.image)
        ids = np.array(list(truth.classes))[::-1, None]
        arrays = {"inst_map": truth.ids, "id": ids, "class": np.array(list(truth.classes.values()))[::-1, None]}
        write_mat(folder / labels / f"{stem}.mat", arrays | changes)


def write_mat(path: Path, arrays: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = {name: array for name, array in arrays.items() if array is not None}
    scipy.io.savemat(path, kept, do_compression=True)


def imagescope(layers: dict[str, list[list[tuple[float, float]]]], attributes: str = "") -> str:
    """The XML of outlines by layer."""
    text = '<Annotations MicronsPerPixel="0.252300">'
    for name, outlines in layers.items():
        text += (
            f'<Annotation Id="1" Name=""><Attributes><Attribute Name={quoteattr(name)} Id="0" Value=""/></Attributes>'
        )
        text += '<Regions><RegionAttributeHeaders><AttributeHeader Id="9999" Name="Region"/></RegionAttributeHeaders>'
        for outline in outlines:
            vertices = "".join(f'<Vertex X="{x:.6f}" Y="{y:.6f}" Z="0"/>' for x, y in outline)
            text += f'<Region Id="1" Type="0" {attributes}><Attributes/><Vertices>{vertices}</Vertices></Region>'
        text += "</Regions><Plots/></Annotation>"
    return text + "</Annotations>"


def write_monusac(folder: Path, truths: dict[str, Truth], suffix: str = ".tif") -> None:
    for stem, truth in truths.items():
        layers: dict[str, list] = {name: [] for name in CLASSES}
        for number, polygon in zip(truth.classes.values(), truth.polygons(), strict=True):
            layers[CLASSES[number - 1]].append(list(polygon.exterior.coords))
        write_image(folder / stem / f"{stem}_1{suffix}", truth.image)
        (folder / stem / f"{stem}_1.xml").write_text(imagescope(layers))


def write_monuseg(folder: Path, truths: dict[str, Truth], flat: bool = False) -> None:
    for stem, truth in truths.items():
        image = folder / ("" if flat else "Tissue Images") / f"{stem}.tif"
        label = folder / ("" if flat else "Annotations") / f"{stem}.xml"
        write_image(image, truth.image)
        label.parent.mkdir(exist_ok=True)
        label.write_text(imagescope({"Description": [list(p.exterior.coords) for p in truth.polygons()]}))


def write_coco(folder: Path, truths: dict[str, Truth]) -> None:
    categories = [{"id": 10 + k, "name": name, "isthing": 1} for k, name in enumerate(CLASSES)]
    document: dict[str, list] = {"images": [], "annotations": [], "categories": categories}
    for k, (stem, truth) in enumerate(truths.items()):
        segments = [{"id": 1000 * i, "category_id": 9 + c, "iscrowd": 0} for i, c in truth.classes.items()]
        document["images"].append({"id": k, "file_name": f"{stem}.png"})
        document["annotations"].append({"image_id": k, "file_name": f"{stem}.png", "segments_info": segments})
        write_image(folder / "images" / f"{stem}.png", truth.image)
        write_image(folder / "panoptic_val" / f"{stem}.png", as_rgb_ids(1000 * truth.ids))
    write_json(folder / "panoptic_val.json", document)


def as_rgb_ids(ids: np.ndarray) -> np.ndarray:
    return np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)


def feature(geometry: shapely.Geometry | None, kind: str, name: str | None = None, **extra: Any) -> dict[str, Any]:
    properties = {"objectType": kind} | ({} if name is None else {"classification": {"name": name, "color": [1, 2, 3]}})
    drawn = None if geometry is None else shapely.geometry.mapping(geometry)
    return {"type": "Feature", "id": "5d0f", "geometry": drawn, "properties": properties} | extra


def nuclei_features(truth: Truth) -> list[dict[str, Any]]:
    pairs = zip(truth.classes.values(), truth.polygons(), strict=True)
    return [feature(polygon, "detection", CLASSES[number - 1]) for number, polygon in pairs]


def collection(*features: dict[str, Any]) -> dict[str, Any]:
    return {"type": "FeatureCollection", "features": list(features)}


def write_qupath(folder: Path, truths: dict[str, Truth]) -> None:
    for stem, truth in truths.items():
        write_image(folder / f"{stem}.tif", truth.image)
        write_json(folder / f"{stem}.geojson", collection(*nuclei_features(truth)))


NUMBERS = tuple("12345")
INSTANCE_LAYOUTS: dict[Layout, tuple[Callable[[Path, dict[str, Truth]], None], tuple[str, str], tuple[str, ...]]] = {
    # layout: writer, names of the items "a" and "b.1", names of the five classes
    "nuclei": (write_nuclei, ("a", "b.1"), NUMBERS),
    "pannuke": (write_pannuke, ("fold1/0001", "fold1/0000"), CLASSES),
    "consep": (write_consep, ("Train/a", "Train/b.1"), NUMBERS),
    "lizard": (write_lizard, ("a", "b.1"), NUMBERS),
    "monusac": (write_monusac, ("a/a_1", "b.1/b.1_1"), CLASSES),
    "monuseg": (write_monuseg, ("a", "b.1"), ()),
    "coco-panoptic": (write_coco, ("panoptic_val/a", "panoptic_val/b.1"), CLASSES),
    "qupath": (write_qupath, ("a", "b.1"), CLASSES),
}


def check_nuclei(found: Annotated, truth: Truth, code_names: tuple[str, ...]) -> None:
    """``found`` has the nuclei of ``truth``, pixel by pixel, under whatever ids, and their classes."""
    assert found.ids is not None
    assert found.ids.dtype == np.int32
    pairs = np.unique(np.stack([truth.ids, found.ids]).reshape(2, -1), axis=1)
    assert pairs.shape[1] == len(np.unique(truth.ids)) == len(np.unique(found.ids)), "ids correspond one to one"
    by_id = dict(zip(*pairs.tolist(), strict=True))
    assert by_id.pop(0) == 0
    codes = {by_id[i]: code_names[c - 1] for i, c in truth.classes.items()} if code_names else {}
    assert found.code_of_id == codes


def only(items: list[Item]) -> Annotated:
    assert len(items) == 1
    return checked(items[0])


@pytest.mark.parametrize("layout", INSTANCE_LAYOUTS)
def test_one_truth_in_every_layout(layout, truths, tmp_path):
    write, names, code_names = INSTANCE_LAYOUTS[layout]
    write(tmp_path, truths)
    items = LAYOUTS[layout](tmp_path)
    assert [i.name for i in items] == sorted(names)
    by_name = {i.name: i for i in pickle.loads(pickle.dumps(items))}  # noqa: S301  (workers are sent items)
    for name, stem in zip(names, ("a", "b.1"), strict=True):
        found = checked(by_name[name])
        np.testing.assert_array_equal(found.image, truths[stem].image)
        check_nuclei(found, truths[stem], code_names)
        assert found.regions is None
        assert found.unknown is None


def test_layouts_are_those_of_the_type():
    assert set(LAYOUTS) == set(get_args(Layout))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_folder_with_nothing_in_it(layout, tmp_path):
    (tmp_path / "__MACOSX").mkdir()
    with pytest.raises(DataError, match="holds no annotated image; expected "):
        LAYOUTS[layout](tmp_path)
    with pytest.raises(DataError, match="is not a folder"):
        LAYOUTS[layout](tmp_path / "nowhere")


@pytest.mark.shared
def test_names_are_those_of_the_development_splits():
    root = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not (root / "splits.json").is_file():
        pytest.skip("the development data are not beside this checkout")
    for folder, split in json.loads((root / "splits.json").read_text()).items():
        has_images = (root / folder / "images").is_dir()
        read = read_nuclei if folder.startswith("nuclei/") else read_tissue if has_images else read_texture
        assert set(split["train"] + split["val"]) <= {i.name for i in read(root / folder)}


# -- our own layouts ----------------------------------------------------------------------------------------------


def test_label_images_may_be_tiff_and_lack_classes(truths, tmp_path):
    write_image(tmp_path / "images" / "a.tif", truths["a"].image)
    write_image(tmp_path / "labels" / "a.tif", truths["a"].ids.astype(np.uint32))
    (tmp_path / "images" / "._a.tif").write_bytes(b"Mac OS X")
    check_nuclei(only(read_nuclei(tmp_path)), truths["a"], ())


def test_classes_may_be_names_and_list_what_is_not_there(truths, tmp_path):
    write_nuclei(tmp_path, {"a": truths["a"]})
    write_json(tmp_path / "classes" / "a.json", {"1": "tumour", "2": 7, "5000": 3})
    assert only(read_nuclei(tmp_path)).code_of_id == {1: "tumour", 2: "7"}


def test_tissue_codes_are_pixel_values(tmp_path):
    codes = np.random.default_rng(0).integers(0, 256, SHAPE, np.uint8)
    write_image(tmp_path / "images" / "a.png", np.zeros((*SHAPE, 3), np.uint8))
    write_image(tmp_path / "labels" / "a.png", codes)
    found = only(read_tissue(tmp_path))
    assert found.ids is None
    np.testing.assert_array_equal(np.array(found.region_codes)[found.regions], codes.astype(str))


def test_texture_is_named_by_its_folder(tmp_path):
    for name in ("TUM/x.1.png", "TUM/a.png", "STR/a.png"):
        write_image(tmp_path / name, np.full((*SHAPE, 3), 7, np.uint8))
    (tmp_path / "README.txt").write_text("not a class")
    items = read_texture(tmp_path)
    assert [i.name for i in items] == ["STR/a", "TUM/a", "TUM/x.1"]
    for item in items:
        found = checked(item)
        assert found.region_codes == (item.name[:3],)
        assert not found.regions.any()
    write_image(tmp_path / "TUM" / "a.tif", np.zeros((*SHAPE, 3), np.uint8))
    with pytest.raises(DataError, match=r"a\.tif: .*a\.png has the same stem"):
        read_texture(tmp_path)


def test_images_and_labels_need_each_other(truths, tmp_path):
    write_nuclei(tmp_path, truths)
    (tmp_path / "classes" / "a.json").unlink()
    with pytest.raises(DataError, match=r"a\.png: .*classes has no file called a"):
        read_nuclei(tmp_path)
    (tmp_path / "labels" / "a.png").unlink()
    with pytest.raises(DataError, match=r"images/a\.png: .*labels has no file called a"):
        read_nuclei(tmp_path)
    (tmp_path / "labels" / "b.1.png").rename(tmp_path / "labels" / "c.png")
    (tmp_path / "images" / "a.png").unlink()
    (tmp_path / "images" / "b.1.png").unlink()
    with pytest.raises(DataError, match=r"labels/c\.png: there is no image called c"):
        read_tissue(tmp_path)


@pytest.mark.parametrize(
    ("label", "match"),
    [
        (np.zeros((9, 9), np.uint16), r"label image is \(9, 9\), its image \(56, 72\)"),
        (np.zeros((*SHAPE, 3), np.uint8), "expected one plane of integers"),
        (np.zeros(SHAPE, np.uint16), "label image is empty"),
        (b"\x89PNG", "cannot be read"),
        (b"GIF89a" + bytes(99), "cannot be read"),
    ],
)
def test_wrong_label_images(label, match, truths, tmp_path):
    write_nuclei(tmp_path, {"a": truths["a"]})
    path = tmp_path / "labels" / "a.png"
    path.write_bytes(label if isinstance(label, bytes) else imagecodecs.png_encode(label))
    with pytest.raises(DataError, match=match):
        only(read_nuclei(tmp_path))


@pytest.mark.parametrize(
    ("label", "match"),
    [
        (np.full(SHAPE, 70_000, np.uint32), "instance ids run from 70000 to 70000"),
        (np.full(SHAPE, 2**31, np.uint32), "whole numbers from 0"),
        (np.full(SHAPE, -1, np.int32), "whole numbers from 0"),
        (np.full(SHAPE, 0.5, np.float32), "expected one plane of integers"),
        (np.zeros((2, *SHAPE), np.uint8), "label image is"),
    ],
)
def test_wrong_numbers_in_label_images(label, match, truths, tmp_path):
    write_image(tmp_path / "images" / "a.png", truths["a"].image)
    (tmp_path / "labels").mkdir()
    tifffile.imwrite(tmp_path / "labels" / "a.tif", label, photometric="minisblack", volumetric=label.ndim == 3)
    with pytest.raises(DataError, match=match):
        only(read_nuclei(tmp_path))


def test_tissue_codes_beyond_a_byte(tmp_path):
    write_image(tmp_path / "images" / "a.png", np.zeros((*SHAPE, 3), np.uint8))
    write_image(tmp_path / "labels" / "a.png", np.full(SHAPE, 256, np.uint16))
    with pytest.raises(DataError, match="codes run from 256 to 256"):
        only(read_tissue(tmp_path))


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("[1]", "expected an object"),
        ('{"1": null}', "class numbers or names"),
        ('{"1": true}', "class numbers or names"),
        ('{"one": 1}', "class numbers or names"),
        ('{"1": 1', "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("\xff", "not UTF-8"),
    ],
)
def test_wrong_class_files(text, match, truths, tmp_path):
    write_nuclei(tmp_path, {"a": truths["a"]})
    (tmp_path / "classes" / "a.json").write_text(text, encoding="latin-1")
    with pytest.raises(DataError, match=match):
        only(read_nuclei(tmp_path))


def test_images_that_are_none_or_too_large(truths, tmp_path, monkeypatch):
    write_nuclei(tmp_path, {"a": truths["a"]})
    monkeypatch.setattr(_pixels, "MAX_PIXELS", 4000)
    with pytest.raises(DataError, match=r"56 x 72 pixels .* cut it into smaller images"):
        only(read_nuclei(tmp_path))
    (tmp_path / "images" / "a.png").write_bytes(b"nothing")
    with pytest.raises(SlideError, match=r"a\.png"):
        only(read_nuclei(tmp_path))


# -- PanNuke ------------------------------------------------------------------------------------------------------


def test_pannuke_ids_used_by_two_classes_are_two_nuclei(tmp_path):
    masks = np.zeros((2, 8, 8, 6), np.uint16)
    masks[0, :2, :2, 0] = masks[0, 4:, 4:, 3] = 300
    masks[0, 1:3, :2, 4] = 1
    for name, array in (("images", np.full((2, 8, 8, 3), 9, np.uint8)), ("masks", masks)):
        (tmp_path / name / "fold2").mkdir(parents=True)
        np.save(tmp_path / name / "fold2" / f"{name}.npy", array)
    items = read_pannuke(tmp_path)
    assert [i.name for i in items] == ["fold2/0000", "fold2/0001"], "the folds may share one images/ and masks/"
    found = checked(items[0])
    assert {found.code_of_id[found.ids[at]] for at in ((0, 0), (5, 5), (2, 0))} == {CLASSES[0], CLASSES[3], CLASSES[4]}
    assert found.ids[1, 0] == found.ids[2, 0], "the later channel wins"
    assert not checked(items[1]).ids.any(), "an empty patch is normal"


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_pannuke_unpickles_nothing(truths, tmp_path):
    write_pannuke(tmp_path, truths, dtype=np.uint16)
    trap, folder = tmp_path / "trap", tmp_path / "Fold 1"
    np.save(folder / "images" / "fold1" / "types.npy", np.array([Malicious(trap)], object), allow_pickle=True)
    check_nuclei(checked(read_pannuke(tmp_path)[1]), truths["a"], CLASSES)
    for content in (np.array([Malicious(trap)], object), None):
        path = folder / "masks" / "fold1" / "masks.npy"
        np.save(path, content, allow_pickle=True) if content is not None else path.write_bytes(
            pickle.dumps(Malicious(trap))
        )
        with pytest.raises(DataError, match=r"masks\.npy: is not a readable array"):
            read_pannuke(tmp_path)
    assert not trap.exists()


@pytest.mark.parametrize(
    ("name", "array", "match"),
    [
        ("masks", np.zeros((2, *SHAPE, 5)), r"expected numbers \[N, height, width, 6\]; found float64"),
        ("images", np.zeros((2, *SHAPE)), r"expected numbers \[N, height, width, 3\]"),
        ("images", np.zeros((2, 0, 0, 3)), r"expected numbers \[N, height, width, 3\]"),
        ("images", np.full((2, *SHAPE, 3), "x"), r"expected numbers \[N, height, width, 3\]; found <U1"),
        ("masks", np.zeros((3, *SHAPE, 6)), "3 masks, .* 2 images"),
        ("masks", np.zeros((2, 8, 8, 6)), "masks are"),
        ("masks", np.full((2, *SHAPE, 6), 0.5), "whole numbers"),
        ("masks", np.full((2, *SHAPE, 6), np.nan), "whole numbers"),
        ("images", np.full((2, *SHAPE, 3), 256.0), "from 0 to 255"),
        ("images", np.full((2, *SHAPE, 3), np.nan), "from 0 to 255"),
        ("images", np.full((2, *SHAPE, 3), 0.5), "scale them"),
    ],
)
def test_wrong_pannuke_arrays(name, array, match, truths, tmp_path):
    write_pannuke(tmp_path, truths)
    np.save(tmp_path / "Fold 1" / name / "fold1" / f"{name}.npy", array)
    with pytest.raises(DataError, match=match):
        checked(read_pannuke(tmp_path)[0])


def test_pannuke_masks_that_are_missing_or_cut(truths, tmp_path):
    write_pannuke(tmp_path, truths)
    path = tmp_path / "Fold 1" / "masks" / "fold1" / "masks.npy"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(DataError, match=r"masks\.npy: is not a readable"):
        read_pannuke(tmp_path)
    path.unlink()
    with pytest.raises(DataError, match=r"masks\.npy: is not a readable"):
        read_pannuke(tmp_path)


# -- CoNSeP and Lizard --------------------------------------------------------------------------------------------


def test_consep_without_type_map(truths, tmp_path):
    truth = {"a": truths["a"]}
    write_consep(tmp_path / "listed", truth, type_map=None)
    check_nuclei(only(read_consep(tmp_path / "listed")), truths["a"], NUMBERS)
    write_consep(tmp_path / "none", truth, type_map=None, inst_type=None)
    check_nuclei(only(read_consep(tmp_path / "none" / "Train")), truths["a"], ())


def test_consep_takes_the_commonest_type(truths, tmp_path):
    ids, types = truths["a"].ids, np.zeros(SHAPE)
    types[ids == 1], types[ids == 2] = 3, 4
    types[tuple(np.argwhere(ids == 1)[0])] = 7
    write_consep(tmp_path, {"a": truths["a"]}, type_map=types)
    assert only(read_consep(tmp_path)).code_of_id == {1: "3", 2: "4"}


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"inst_map": None}, "holds no inst_map"),
        ({"inst_map": np.full((9, 9), 1)}, "type_map is"),
        ({"inst_map": np.full((9, 9), 1), "type_map": None, "inst_type": None}, "label image is"),
        ({"inst_map": np.full(SHAPE, 1.5)}, "inst_map has values from 1.5"),
        ({"inst_map": np.full(SHAPE, -1)}, "inst_map has values from -1"),
        ({"inst_map": np.full(SHAPE, 70_000), "type_map": None, "inst_type": None}, "from 70000 to 70000"),
        ({"inst_map": "text"}, "inst_map is of type"),
        ({"type_map": None, "inst_type": np.ones((2, 1))}, "lists 2 classes for"),
    ],
)
def test_wrong_consep_files(changes, match, truths, tmp_path):
    write_consep(tmp_path, {"a": truths["a"]}, **changes)
    with pytest.raises(DataError, match=match):
        only(read_consep(tmp_path))


def test_matlab_files_that_cannot_be_read(truths, tmp_path, monkeypatch):
    write_consep(tmp_path, {"a": truths["a"]})
    path = tmp_path / "Train" / "Labels" / "a.mat"
    whole = path.read_bytes()
    for content, match in (
        (whole[:300], "not a readable MATLAB file"),
        (b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(99), "save it with -v7"),
        (b"", "not a readable MATLAB file"),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=match):
            only(read_consep(tmp_path))
    path.write_bytes(whole)
    monkeypatch.setattr(_documents, "MAX_PIXELS", 1000)
    with pytest.raises(DataError, match="claims variables of"):
        only(read_consep(tmp_path))


def test_consep_images_need_labels(truths, tmp_path):
    write_consep(tmp_path, truths, part="Test")
    (tmp_path / "Test" / "Labels" / "a.mat").unlink()
    with pytest.raises(DataError, match=r"a\.png: .*Labels has no file called a"):
        read_consep(tmp_path)


@pytest.mark.parametrize("labels", ["Labels/Labels", "Labels"])
def test_lizard_labels_lie_in_several_places(labels, truths, tmp_path):
    write_lizard(tmp_path, truths, labels)
    (tmp_path / "Lizard_Images1").rename(tmp_path / "Images")
    check_nuclei(checked(read_lizard(tmp_path)[0]), truths["a"], NUMBERS)


def test_lizard_nuclei_without_a_class(truths, tmp_path):
    write_lizard(tmp_path, {"a": truths["a"]}, id=np.array([[3], [2]]), **{"class": np.array([[6], [1]])})
    assert only(read_lizard(tmp_path)).code_of_id == {2: "1", 3: "6"}


@pytest.mark.parametrize(
    ("changes", "match"),
    [({"class": None}, "expected id and class"), ({"class": np.array([[1]])}, "lists 1 classes for")],
)
def test_wrong_lizard_files(changes, match, truths, tmp_path):
    write_lizard(tmp_path, {"a": truths["a"]}, **changes)
    with pytest.raises(DataError, match=match):
        only(read_lizard(tmp_path))


# -- MoNuSAC and MoNuSeg ------------------------------------------------------------------------------------------


def square(x: float, y: float, side: float) -> list[tuple[float, float]]:
    return [(x, y), (x + side, y), (x + side, y + side), (x, y + side)]


def test_monusac_prefers_the_tiff_and_monuseg_may_be_flat(truths, tmp_path):
    write_monusac(tmp_path / "sac", truths, ".svs")
    check_nuclei(checked(read_monusac(tmp_path / "sac")[0]), truths["a"], CLASSES)
    other = Truth(255 - truths["a"].image, truths["a"].ids, truths["a"].classes)
    write_monusac(tmp_path / "sac", {"a": other}, ".tif")
    np.testing.assert_array_equal(checked(read_monusac(tmp_path / "sac")[0]).image, other.image)
    write_monuseg(tmp_path / "seg", truths, flat=True)
    check_nuclei(checked(read_monuseg(tmp_path / "seg")[0]), truths["a"], ())


def test_regions_of_imagescope_that_are_no_nuclei(truths, tmp_path):
    write_image(tmp_path / "a.tif", truths["a"].image)
    layers = {"Epithelial": [square(10, 10, 8), square(40, 10, 8)[:2]], "Ambiguous": [square(30, 30, 5)]}
    (tmp_path / "a.xml").write_text(imagescope(layers))
    found = only(read_monusac(tmp_path))
    assert list(found.code_of_id.values()) == ["Epithelial"]
    assert (found.ids > 0).sum() == 64
    assert found.unknown.sum() == found.unknown[30:35, 30:35].sum() == 25
    (tmp_path / "a.xml").write_text(imagescope(layers, 'NegativeROA="1"'))
    with pytest.raises(DataError, match="label image is empty"):
        only(read_monusac(tmp_path))


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("<Annotations>", "not valid XML"),
        ("<ASAP_Annotations/>", "expected <Annotations>"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><Annotations>&b;</Annotations>', "document type or entities"),
        ('<!doctype a SYSTEM "file:///etc/passwd"><Annotations/>', "document type or entities"),
        (imagescope({"a": [square(1, 1, 5)]}).replace('Y="1.0', 'W="1.0'), "lacks its X or Y"),
        (imagescope({"a": [square(1, 1, 5)]}).replace('Y="1.0', 'Y="x'), "lacks its X or Y"),
        (imagescope({"a": [square(1, 1, 5)]}).replace('"1.000000"', '"nan"'), "outside any image"),
        (imagescope({"a": [square(1, 1, 5)]}).replace('"1.000000"', '"1e300"'), "outside any image"),
        (imagescope({"a": [square(500, 500, 5)]}), "label image is empty"),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_wrong_imagescope_files(text, match, encoding, truths, tmp_path):
    write_image(tmp_path / "a.tif", truths["a"].image)
    (tmp_path / "a.xml").write_bytes(text.encode(encoding))
    for read in (read_monusac, read_monuseg):
        with pytest.raises(DataError, match=match):
            only(read(tmp_path))


def test_monusac_images_need_outlines(truths, tmp_path):
    write_monusac(tmp_path, truths)
    (tmp_path / "a" / "a_1.xml").unlink()
    with pytest.raises(DataError, match=r"a_1\.tif: .* has no file called a_1"):
        read_monusac(tmp_path)


# -- COCO panoptic ------------------------------------------------------------------------------------------------


def coco_document(segments: list[dict[str, Any]]) -> dict[str, list]:
    categories = [(1, "nucleus", 1), (2, "stroma", 0), (3, "fat", 0)]
    return {
        "images": [{"id": 5, "file_name": "x/a.png", "width": 4, "height": 1}],
        "annotations": [{"image_id": 5, "file_name": "a.png", "segments_info": segments}],
        "categories": [{"id": i, "name": name, "isthing": thing} for i, name, thing in categories],
    }


SEGMENTS = [
    {"id": 70_000, "category_id": 1, "iscrowd": 0},
    {"id": 2, "category_id": 2},
    {"id": 3, "category_id": 3},
    {"id": 4, "category_id": 1, "iscrowd": 1},
]


def write_coco_document(folder: Path, document: Any, mask: np.ndarray) -> None:
    write_json(folder / "annotations" / "panoptic_val.json", document)
    write_image(folder / "annotations" / "panoptic_val" / "a.png", as_rgb_ids(mask))
    write_image(folder / "val" / "x" / "a.png", np.zeros((1, 5, 3), np.uint8))


def test_coco_things_stuff_crowd_and_void(tmp_path):
    write_coco_document(tmp_path, coco_document(SEGMENTS), np.array([[70_000, 2, 3, 4, 0]]))
    items = read_coco_panoptic(tmp_path)
    assert [i.name for i in items] == ["panoptic_val/x/a"]
    found = checked(items[0])
    assert found.ids.tolist() == [[1, 0, 0, 0, 0]]
    assert found.code_of_id == {1: "nucleus"}
    assert [found.region_codes[i] for i in found.regions[0]] == [None, "stroma", "fat", None, None]
    assert found.unknown.tolist() == [[False, False, False, True, True]]


def test_coco_without_things_says_nothing_about_nuclei(tmp_path):
    document = coco_document([{"id": 2, "category_id": 2}])
    del document["categories"][0]
    write_coco_document(tmp_path, document, np.full((1, 5), 2))
    assert only(read_coco_panoptic(tmp_path)).ids is None


def without(key: str) -> dict[str, list]:
    return {k: v for k, v in coco_document(SEGMENTS).items() if k != key}


@pytest.mark.parametrize(
    ("document", "match"),
    [
        ([], "list of objects 'categories'"),
        (without("categories"), "list of objects 'categories'"),
        (without("annotations") | {"annotations": {}}, "list of objects 'annotations'"),
        (without("images") | {"images": []}, "image 5 is listed in only one"),
        (without("images") | {"images": [{"id": True, "file_name": "a.png"}]}, "'id' must be an integer"),
        (without("images") | {"images": [{"id": 5, "file_name": "../a.png"}]}, "a name below the data folder"),
        (without("images") | {"images": [{"id": 5, "file_name": "/etc/passwd"}]}, "a name below the data folder"),
        (without("images") | {"images": [{"id": 5, "file_name": "c.png"}]}, r"'c\.png', which is missing in"),
        (without("images") | {"images": [{"id": 5}]}, "'file_name' must be text"),
        (without("categories") | {"categories": [{"id": 1, "name": "n", "isthing": 2}]}, "'isthing' must be 0 or 1"),
        (coco_document([{"id": 2, "category_id": 9}]), "of category 9"),
        (coco_document(SEGMENTS + SEGMENTS[:1]), "two of its segments_info have id 70000"),
        (coco_document([{"id": 2**40, "category_id": 1}]), "'id' must be an integer"),
        (coco_document([{"id": 0, "category_id": 1}]), "has a segment 0; expected ids from 1"),
        (coco_document(SEGMENTS[1:]), r"a\.png: holds segment 70000, which .*panoptic_val\.json does not list"),
        (
            coco_document([*SEGMENTS, {"id": 9, "category_id": 1}]),
            r"panoptic_val\.json: lists segment 9 of image 5, which no pixel of .*a\.png has",
        ),
    ],
)
def test_wrong_coco_documents(document, match, tmp_path):
    write_coco_document(tmp_path, document, np.array([[70_000, 2, 3, 4, 0]]))
    with pytest.raises(DataError, match=match):
        only(read_coco_panoptic(tmp_path))


def test_coco_masks_of_another_size(tmp_path):
    write_coco_document(tmp_path, coco_document(SEGMENTS[:2]), np.array([[70_000, 2]]))
    with pytest.raises(DataError, match=r"label image is \(1, 2\), its image \(1, 5\)"):
        only(read_coco_panoptic(tmp_path))


# -- QuPath -------------------------------------------------------------------------------------------------------


def test_qupath_cells_children_and_older_versions(truths, tmp_path):
    """Whatever QuPath calls a nucleus: as a cell's nucleus, nested in an annotation, spelt as 0.2 and 0.3 did."""
    plain = nuclei_features(truths["a"])
    for k, entry in enumerate(plain):
        if k % 4 == 0:
            entry["nucleusGeometry"] = entry["geometry"]
            entry["geometry"] = shapely.geometry.mapping(shapely.box(0, 0, 50, 50))
            entry["properties"]["objectType"] = "cell"
        elif k % 4 == 1:
            entry["properties"]["object_type"] = entry["properties"].pop("objectType")
        elif k % 4 == 2:
            del entry["properties"]["objectType"]
            entry["id"] = "PathDetectionObject"
    parent = feature(shapely.box(0, 0, 9, 9), "annotation")
    parent["properties"]["childObjects"] = plain[3::4]
    tile = feature(shapely.box(0, 0, 9, 9), "tile", "Tumor")
    features = [parent, tile, feature(None, "root"), *(p for k, p in enumerate(plain) if k % 4 != 3)]
    write_image(tmp_path / "a.ome.tif", truths["a"].image)
    (tmp_path / "a.geojson.gz").write_bytes(gzip.compress(json.dumps(features).encode()))
    items = read_qupath(tmp_path)
    assert [i.name for i in items] == ["a"]
    found = only(items)
    np.testing.assert_array_equal(found.ids > 0, truths["a"].ids > 0)
    assert sorted(found.code_of_id.values()) == sorted(CLASSES[c - 1] for c in truths["a"].classes.values())
    assert found.regions is None


@pytest.mark.parametrize("name", ["a.geojson", "a.tif.geojson", "a.json"])
def test_qupath_files_may_be_named_after_the_image(name, truths, tmp_path):
    write_image(tmp_path / "a.tif", truths["a"].image)
    write_json(tmp_path / name, collection(*nuclei_features(truths["a"])))
    assert read_qupath(tmp_path)[0].name == "a"


def test_qupath_annotations_are_tissue(truths, tmp_path):
    write_image(tmp_path / "a.tif", truths["a"].image)
    derived = feature(shapely.box(40, 0, 72, 56), "annotation")
    derived["properties"]["classification"] = {"names": ["Stroma", "Dense"]}
    hole = shapely.Polygon(shapely.box(0, 0, 40, 56).exterior.coords, [shapely.box(20, 20, 30, 30).exterior.coords])
    two = shapely.MultiPolygon([shapely.box(2, 2, 6, 6), shapely.box(8, 8, 10, 10)])
    features = [
        feature(two, "annotation", "Necrosis"),
        feature(hole, "annotation", "Tumor"),
        feature(shapely.box(0, 0, 30, 56), "annotation"),
        feature(shapely.LineString([(0, 0), (9, 9)]), "annotation", "Tumor"),
        feature(shapely.box(50, 0, 72, 10), "annotation", "Ignore*"),
        derived,
    ]
    write_json(tmp_path / "a.geojson", collection(*features))
    found = only(read_qupath(tmp_path))
    assert found.ids is None, "nobody marked nuclei"
    codes = np.array(["" if c is None else c for c in found.region_codes])[found.regions]
    expected = np.full(SHAPE, "Tumor", "U20")
    expected[20:30, 20:30] = ""
    expected[2:6, 2:6] = expected[8:10, 8:10] = "Necrosis"
    expected[:, 40:] = "Stroma: Dense"
    expected[:10, 50:] = ""
    np.testing.assert_array_equal(codes, expected)
    np.testing.assert_array_equal(np.argwhere(found.unknown)[[0, -1]], [[0, 50], [9, 71]])


def test_qupath_regions_are_items(truths, tmp_path):
    """A slide with training areas: boxes at full resolution, with what lies in them."""
    truth = truths["a"]
    write_image(tmp_path / "a.tif", truth.image)
    triangle = shapely.Polygon([(40, 10), (70.5, 10), (40, 40.5)])
    areas = [
        feature(shapely.box(5.2, 4.7, 30, 44), "annotation", "Region*"),
        feature(triangle, "annotation", "Region*"),
    ]
    tumour = feature(shapely.box(0, 0, 20, 56), "annotation", "Tumor")
    write_json(tmp_path / "a.geojson", collection(*nuclei_features(truth), tumour, *areas))
    items = read_qupath(tmp_path)
    assert [i.name for i in items] == ["a/10_40", "a/4_5"]
    boxes = [np.s_[10:41, 40:71], np.s_[4:44, 5:30]]
    for item, box in zip(items, boxes, strict=True):
        found = checked(item)
        np.testing.assert_array_equal(found.image, truth.image[box])
        part = Truth(truth.image[box], truth.ids[box], {i: truth.classes[i] for i in np.unique(truth.ids[box]) if i})
        check_nuclei(found, part, CLASSES)
        if item.name == "a/4_5":
            y, x = np.indices((40, 25))
            np.testing.assert_array_equal(found.unknown, y == 0, "the centres of row 4 are outside")
            np.testing.assert_array_equal(found.regions > 0, (x < 15) & (y > 0))
        else:
            y, x = np.indices((31, 31)) + 0.5
            np.testing.assert_array_equal(found.unknown, x + y > 30.5)
            assert found.regions is None


def test_qupath_regions_without_nuclei_have_none(truths, tmp_path):
    write_image(tmp_path / "a.tif", truths["a"].image)
    features = [
        feature(shapely.box(1, 1, 5, 5), "detection"),
        feature(shapely.box(30, 30, 40, 40), "annotation", "Region*"),
    ]
    write_json(tmp_path / "a.geojson", collection(*features))
    assert not only(read_qupath(tmp_path)).ids.any()


def test_qupath_images_too_large_need_regions(truths, tmp_path, monkeypatch):
    write_qupath(tmp_path, {"a": truths["a"]})
    monkeypatch.setattr(_pixels, "MAX_PIXELS", 4000)
    with pytest.raises(DataError, match=r"56 x 72 pixels .* draw Region\* annotations"):
        only(read_qupath(tmp_path))
    area = feature(shapely.box(0, 0, 60, 60), "annotation", "Region*")
    write_json(tmp_path / "a.geojson", collection(area))
    with pytest.raises(DataError, match="check that they belong together"):
        only(read_qupath(tmp_path))


def test_qupath_images_and_files_need_each_other(truths, tmp_path):
    write_qupath(tmp_path, truths)
    write_image(tmp_path / "a.png", truths["a"].image)
    with pytest.raises(DataError, match=r"a\.geojson: expected one image called a beside it; found a\.png, a\.tif"):
        read_qupath(tmp_path)
    (tmp_path / "a.png").unlink()
    (tmp_path / "a.geojson").unlink()
    with pytest.raises(DataError, match=r"a\.tif: has no GeoJSON file beside it"):
        read_qupath(tmp_path)
    write_json(tmp_path / "c.geojson", collection())
    with pytest.raises(DataError, match=r"c\.geojson: expected one image called c beside it; found none"):
        read_qupath(tmp_path)


def geometry(kind: str, coordinates: Any) -> dict[str, Any]:
    geometry = {"type": kind, "coordinates": coordinates}
    return collection({"type": "Feature", "geometry": geometry, "properties": {"objectType": "detection"}})


SQUARE = [[1, 1], [9, 1], [9, 9], [1, 1]]


@pytest.mark.parametrize(
    ("document", "match"),
    [
        ({"type": "FeatureCollection"}, "list of objects 'features'"),
        ("text", "list of objects 'features'"),
        ([1], "list of objects 'features'"),
        (collection(), "nothing is annotated"),
        (collection({"properties": []}), "expected a Polygon"),
        (collection({"properties": ["x"]}), "properties are no object"),
        (collection({"geometry": None, "properties": {"objectType": "detection"}}), "expected a Polygon"),
        (geometry("Point", [1, 1]), "expected a Polygon or MultiPolygon"),
        (geometry("GeometryCollection", []), "expected a Polygon or MultiPolygon"),
        (geometry("Polygon", []), "has no rings"),
        (geometry("MultiPolygon", []), "expected a Polygon or MultiPolygon"),
        (geometry("Polygon", [[]]), "lists of two numbers"),
        (geometry("Polygon", [[1, 2, 3]]), "lists of two numbers"),
        (geometry("Polygon", [[["1", "2"], ["3", "4"]]]), "lists of two numbers"),
        (geometry("Polygon", [[[1, 2], [3]]]), "lists of two numbers"),
        (geometry("Polygon", [[[1, 2], [True, None], [1, 2]]]), "lists of two numbers"),
        (geometry("Polygon", [[[1, 2], [1, 10**400], [4, 4]]]), "lists of two numbers"),
        (geometry("Polygon", [[[1, 2], [1, 1e300], [4, 4]]]), "outside any image"),
        (geometry("Polygon", [[[1, 2], [1, float("nan")], [4, 4]]]), "outside any image"),
        (collection(feature(shapely.box(1, 1, 9, 9), "detection", 5)), "a classification needs a name"),  # type: ignore
        (collection(feature(shapely.box(100, 100, 109, 109), "detection")), "label image is empty"),
    ],
)
def test_wrong_qupath_documents(document, match, truths, tmp_path):
    write_image(tmp_path / "a.tif", truths["a"].image)
    write_json(tmp_path / "a.geojson", document)
    with pytest.raises(DataError, match=match):
        only(read_qupath(tmp_path))


def test_compressed_files_that_cannot_be_read(truths, tmp_path, monkeypatch):
    write_image(tmp_path / "a.tif", truths["a"].image)
    path = tmp_path / "a.geojson.gz"
    packed = gzip.compress(json.dumps(collection(*nuclei_features(truths["a"]))).encode())
    for content in (packed[:100], b"no gzip", packed[:20] + b"\xff" * 60):
        path.write_bytes(content)
        with pytest.raises(DataError, match="cannot be read"):
            read_qupath(tmp_path)
    path.write_bytes(packed)
    monkeypatch.setattr(_documents, "MAX_BYTES", 1000)
    with pytest.raises(DataError, match="more than 1,000 bytes"):
        read_qupath(tmp_path)


# -- outlines -----------------------------------------------------------------------------------------------------


def random_rings() -> Iterator[tuple[np.ndarray, ...]]:
    rng = np.random.default_rng(4)
    for _ in range(40):
        yield tuple(rng.uniform(-5, 30, (rng.integers(3, 9), 2)) for _ in range(rng.integers(1, 3)))


def test_fill_is_the_centres_inside_an_odd_number_of_rings():
    box = Box(2, 1, 22, 25)
    centres = np.stack(np.meshgrid(np.arange(1, 25), np.arange(2, 22)), -1).reshape(-1, 2) + 0.5
    for rings in random_rings():
        expected = np.logical_xor.reduce([points_in_poly(centres, ring) for ring in rings]).reshape(box.shape)
        np.testing.assert_array_equal(fill(Outline(rings), box), expected)


@pytest.mark.parametrize("step", [1, 0.5, 0.37])
def test_outlines_that_share_edges_share_no_pixels(step):
    """Triangles about one point that tile a square, vertices on centres of pixels and off."""
    rng = np.random.default_rng(0)
    corner = np.round(rng.uniform(8, 16, 2) / step) * step
    rim = np.array([(0, 0), (7, 0), (24, 0), (24, 11.5), (24, 24), (3.5, 24), (0, 24), (0, 5)], float)
    box = Box(0, 0, 24, 24)
    triangles = [Outline((np.stack([corner, a, b]),)) for a, b in zip(rim, np.roll(rim, 1, axis=0), strict=True)]
    assert (sum(fill(t, box).astype(int) for t in triangles) == 1).all()


def test_of_overlapping_outlines_the_smaller_lies_on_top():
    def outline(x: float, y: float, side: float, code: str | None = None) -> Outline:
        return Outline((np.array(square(x, y, side)),), code)

    box = Box(0, 0, 20, 20)
    outlines = [outline(4, 4, 4, "small"), outline(0, 0, 12, "large"), outline(6, 6, 4, "later")]
    ids, codes = draw_ids(outlines, Path("a"), box)
    assert (ids[5, 5], ids[0, 0], ids[7, 7]) == (1, 2, 3)
    assert codes == {1: "small", 2: "large", 3: "later"}
    regions, names = draw_regions([*outlines, outline(0, 0, 2)], Path("a"), box)
    assert [names[regions[at]] for at in ((5, 5), (3, 3), (7, 7), (1, 1), (15, 15))] == [
        "small",
        "large",
        "later",
        None,
        None,
    ]
    hidden, codes = draw_ids([outline(1, 1, 3, "hidden"), outline(1, 1, 3, "seen")], Path("a"), box)
    assert set(np.unique(hidden)) == {0, 2}
    assert codes == {2: "seen"}


def test_thin_nuclei_keep_a_pixel():
    slivers = [[(3.6, 1), (3.9, 1), (3.9, 9)], [(10, 7), (14, 7), (12, 7)], [(6.1, 6.1), (6.2, 6.1), (6.2, 6.2)]]
    ids, _ = draw_ids([Outline((np.array(s, float),)) for s in slivers], Path("a"), Box(0, 0, 10, 20))
    assert {i: np.argwhere(ids == i).tolist() for i in (1, 2, 3)} == {1: [[3, 3]], 2: [[7, 12]], 3: [[6, 6]]}
    ids, _ = draw_ids([Outline((np.array(s, float) - 20,)) for s in slivers], Path("a"), Box(0, 0, 10, 20))
    assert not ids.any()


def test_too_many_kinds_of_tissue():
    outlines = [Outline((np.array(square(0, 0, 2)),), str(k)) for k in range(256)]
    with pytest.raises(DataError, match="names 256 kinds of tissue"):
        draw_regions(outlines, Path("a.geojson"), Box(0, 0, 4, 4))
