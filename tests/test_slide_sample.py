"""The sample slide: downloaded and checked, or synthetic with the reason said. No test touches the network."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest

from nucleipan import sample
from nucleipan.errors import DataError
from nucleipan.sample import SAMPLE_BYTES, SAMPLE_URL, fetch_sample
from nucleipan.slide import open_slide


@pytest.fixture(autouse=True)
def small_synthetic_slides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample, "_SYNTHETIC_SHAPE", (300, 400))


def offline(url: str, **_: Any) -> io.BytesIO:
    raise URLError("no route to host")


@pytest.mark.shared
def test_download(shared_slides: Path, tmp_path: Path) -> None:
    data = (shared_slides / "CMU-1-Small-Region.svs").read_bytes()
    asked = []

    def opener(url: str, *, timeout: float) -> io.BytesIO:
        asked.append((url, timeout))
        return io.BytesIO(data)

    assert len(data) == SAMPLE_BYTES
    result = fetch_sample(tmp_path / "a.tiff", opener=opener)
    assert asked[0][0] == SAMPLE_URL
    assert 0 < asked[0][1] <= 60
    assert not result.is_synthetic
    assert result.truth is None
    assert result.path.read_bytes() == data
    assert list(tmp_path.iterdir()) == [result.path]


def test_offline_makes_a_synthetic_slide_and_says_why(tmp_path: Path) -> None:
    result = fetch_sample(tmp_path / "a.tiff", opener=offline)
    assert result.is_synthetic
    assert "no route to host" in result.message
    assert "synthetic" in result.message
    assert result.truth is not None
    assert (result.truth / "labels" / "a.png").is_file()
    assert (result.truth / "classes" / "a.json").is_file()
    with open_slide(result.path) as slide:
        assert slide.levels[0].shape == (300, 400)
        assert slide.mpp == pytest.approx(0.5)
    assert {p.name for p in tmp_path.iterdir()} == {"a.tiff", "a_truth"}


@pytest.mark.parametrize("sent", [b"", b"<html>sign in to this network</html>", bytes(SAMPLE_BYTES), bytes(10**7)])
def test_a_wrong_file_is_never_kept(tmp_path: Path, sent: bytes) -> None:
    result = fetch_sample(tmp_path / "a.tiff", opener=lambda url, **_: io.BytesIO(sent))
    assert result.is_synthetic
    assert "checksum" in result.message


def test_nowhere_to_write(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="folder that exists"):
        fetch_sample(tmp_path / "absent" / "a.tiff", opener=offline)
    with pytest.raises(DataError):
        fetch_sample(tmp_path, opener=offline)
