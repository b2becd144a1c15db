"""The cache of the embedded model holds whole, published files, or none."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from latentguard.encoders.model_cache import (
    PublishedFile,
    is_published,
    read_content_named,
    store_content_named,
    unpacked,
)
from latentguard.errors import EncoderError

CONTENT = {"config.json": b"{}", "model.bin": bytes(range(256)) * 8192}
PUBLISHED = {name: PublishedFile(len(data), hashlib.sha256(data).hexdigest()) for name, data in CONTENT.items()}


def write_archive(path: Path, content: Mapping[str, bytes] = CONTENT) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return path


def unpack(archive: Path, folder: Path) -> Path:
    return unpacked(lambda: archive, folder, PUBLISHED, PUBLISHED)


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} - {".lock"}


def test_unpacks_the_published_files(tmp_path: Path) -> None:
    folder = unpack(write_archive(tmp_path / "model.zip"), tmp_path / "cache")
    assert {name: (folder / name).read_bytes() for name in files(folder)} == CONTENT


def test_a_whole_cache_needs_no_archive(tmp_path: Path) -> None:
    archive = write_archive(tmp_path / "model.zip")
    folder = unpack(archive, tmp_path / "cache")
    archive.unlink()
    assert unpack(archive, folder) == folder


def test_members_that_are_not_asked_for_stay_in_the_archive(tmp_path: Path) -> None:
    archive = write_archive(tmp_path / "model.zip", {**CONTENT, "../evil": b"x", "/evil": b"x", "other": b"x"})
    folder = unpack(archive, tmp_path / "cache")
    assert files(folder) == set(CONTENT)
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize(
    "changed",
    [
        {"model.bin": CONTENT["model.bin"][:-1] + b"\0"},
        {"model.bin": CONTENT["model.bin"][:-1]},
        {"model.bin": CONTENT["model.bin"] + b"\0"},
        {"model.bin": CONTENT["model.bin"] * 50},
        {"config.json": b"[]"},
    ],
    ids=["a byte changed", "shorter", "longer", "a bomb", "another file changed"],
)
def test_other_content_is_refused_and_leaves_nothing(tmp_path: Path, changed: dict[str, bytes]) -> None:
    archive = write_archive(tmp_path / "model.zip", {**CONTENT, **changed})
    with pytest.raises(EncoderError, match="is not the published file"):
        unpack(archive, tmp_path / "cache")
    assert files(tmp_path / "cache") == set()


def test_a_truncated_archive_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    archive = write_archive(tmp_path / "model.zip")
    archive.write_bytes(archive.read_bytes()[:-30])
    with pytest.raises(EncoderError, match="damaged archive"):
        unpack(archive, tmp_path / "cache")
    assert files(tmp_path / "cache") == set()


def test_an_archive_damaged_inside_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    archive = write_archive(tmp_path / "model.zip")
    damaged = bytearray(archive.read_bytes())
    damaged[200:400] = bytes(200)
    archive.write_bytes(damaged)
    with pytest.raises(EncoderError, match=r"model\.zip"):
        unpack(archive, tmp_path / "cache")
    assert files(tmp_path / "cache") == set()


def test_an_archive_without_a_file_is_refused(tmp_path: Path) -> None:
    archive = write_archive(tmp_path / "model.zip", {"config.json": CONTENT["config.json"]})
    with pytest.raises(EncoderError, match="damaged archive"):
        unpack(archive, tmp_path / "cache")


def test_an_absent_archive_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match="can't be read: No such file") as caught:
        unpack(tmp_path / "model.zip", tmp_path / "cache")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[:-9], lambda data: b"\xff" + data[1:]])
def test_a_damaged_cache_is_repaired(tmp_path: Path, damage: type) -> None:
    archive = write_archive(tmp_path / "model.zip")
    folder = unpack(archive, tmp_path / "cache")
    (folder / "model.bin").write_bytes(damage(CONTENT["model.bin"]))
    unpack(archive, folder)
    assert (folder / "model.bin").read_bytes() == CONTENT["model.bin"]


def test_what_a_killed_process_left_is_cleared_away(tmp_path: Path) -> None:
    archive, folder = write_archive(tmp_path / "model.zip"), tmp_path / "cache"
    (folder / ".partial").mkdir(parents=True)
    (folder / ".partial" / "model.bin").write_bytes(b"half")
    unpack(archive, folder)
    assert files(folder) == set(CONTENT)


def test_a_cache_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file, where the folder should be")
    with pytest.raises(EncoderError, match="LATENTGUARD_CACHE"):
        unpack(write_archive(tmp_path / "model.zip"), tmp_path / "cache")


def test_a_missing_file_is_not_the_published_one(tmp_path: Path) -> None:
    assert not is_published(tmp_path / "model.bin", PUBLISHED["model.bin"])


def test_stored_content_is_read_back(tmp_path: Path) -> None:
    store_content_named(tmp_path, "graph-1", ".onnx", b"content")
    assert read_content_named(tmp_path, "graph-1", ".onnx") == b"content"


def test_content_that_no_longer_fits_its_name_is_not_read(tmp_path: Path) -> None:
    store_content_named(tmp_path, "graph-1", ".onnx", b"content")
    (path,) = tmp_path.glob("graph-1-*")
    path.write_bytes(b"contenT")
    assert read_content_named(tmp_path, "graph-1", ".onnx") is None


def test_storing_again_keeps_only_the_new_content(tmp_path: Path) -> None:
    store_content_named(tmp_path, "graph-1", ".onnx", b"old")
    store_content_named(tmp_path, "graph-1", ".onnx", b"new")
    assert read_content_named(tmp_path, "graph-1", ".onnx") == b"new"
    assert len(list(tmp_path.glob("graph-1-*"))) == 1


def test_another_recipe_is_not_mistaken_for_this_one(tmp_path: Path) -> None:
    store_content_named(tmp_path, "graph-1", ".onnx", b"content")
    assert read_content_named(tmp_path, "graph-2", ".onnx") is None
