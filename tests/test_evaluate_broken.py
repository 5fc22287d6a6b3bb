"""Truth and predictions that cannot be what they should: the error names the file and what it holds."""

from pathlib import Path

import imagecodecs
import numpy as np
import pytest

from nucleipan.errors import DataError
from nucleipan.evaluate.vocabulary import read_json_object, read_names, read_plane
from nucleipan.metrics.tissue import pixel_confusion


def test_names_are_one_several_or_none(tmp_path: Path) -> None:
    path = tmp_path / "names.json"
    path.write_text('{"1": "tumour", "2": ["stroma", "lymphoid", "stroma"], "9": null}')
    assert read_names(path) == {1: ("tumour",), 2: ("stroma", "lymphoid"), 9: ()}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"1": 5}', "must be a name, a list of names or null; found 5"),
        ('{"1": ["tumour", 5]}', "must be a name"),
        ('{"one": "tumour"}', "an integer from 0 to 255; found 'one'"),
        ('{"256": "tumour"}', "an integer from 0 to 255; found '256'"),
        ('{"-1": "tumour"}', "an integer from 0 to 255; found '-1'"),
        ('["tumour"]', "must hold a JSON object; found list"),
        ('{"1": ', "is not valid JSON"),
    ],
)
def test_names_that_are_none(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "names.json"
    path.write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        read_names(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing\.json cannot be read"):
        read_json_object(tmp_path / "nothing.json")


@pytest.mark.parametrize("suffix", [".png", ".tif", ".npy"])
def test_a_plane_is_integers_of_two_axes(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"plane{suffix}"
    path.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"plane\..* cannot be read"):
        read_plane(path)


def test_planes_of_other_kinds(tmp_path: Path) -> None:
    colours, halves = tmp_path / "colours.png", tmp_path / "halves.npy"
    colours.write_bytes(imagecodecs.png_encode(np.zeros((4, 5, 3), np.uint8)))
    np.save(halves, np.zeros((4, 5), np.float32))
    with pytest.raises(DataError, match=r"one plane of integers; found shape \(4, 5, 3\), uint8"):
        read_plane(colours)
    with pytest.raises(DataError, match=r"found shape .*float32"):
        read_plane(halves)


def test_class_planes_fit_together() -> None:
    plane = np.zeros((4, 5), np.uint8)
    with pytest.raises(DataError, match=r"share one shape \[h, w\]; found prediction \(4, 5\), truth \(5, 4\)"):
        pixel_confusion(plane, plane.T, 3)
    for pred, true in ((plane + 4, plane), (plane, plane + 4)):
        with pytest.raises(DataError, match="an id above 3"):
            pixel_confusion(pred, true, 3)
