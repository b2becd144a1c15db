from __future__ import annotations

import os
from pathlib import Path

import pytest
from disk import files_limited_to

from latentguard.errors import DataError
from latentguard.files import atomic_path


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "result.json"
    path.write_text("old")
    return path


def write_then(error: BaseException, target: Path) -> None:
    with atomic_path(target) as temporary:
        temporary.write_text("new")
        raise error


def test_the_target_holds_what_was_written(target: Path) -> None:
    with atomic_path(target) as temporary:
        temporary.write_text("new")
    assert target.read_text() == "new"


def test_the_target_is_untouched_until_the_end(target: Path) -> None:
    with atomic_path(target) as temporary:
        temporary.write_text("new")
        assert target.read_text() == "old"


def test_the_temporary_file_lies_beside_the_target_and_has_its_suffix(target: Path) -> None:
    with atomic_path(target) as temporary:
        assert (temporary.parent, temporary.suffix) == (target.parent, ".json")


def test_nothing_else_is_left_behind(target: Path) -> None:
    with atomic_path(target) as temporary:
        temporary.write_text("new")
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("error", [ValueError("ours"), KeyboardInterrupt(), SystemExit(1), FileNotFoundError("input")])
def test_an_exception_passes_and_leaves_the_target_as_it_was(target: Path, error: BaseException) -> None:
    with pytest.raises(type(error)) as raised:
        write_then(error, target)
    assert raised.value is error
    assert target.read_text() == "old"
    assert list(target.parent.iterdir()) == [target]


def test_a_full_disk_is_a_data_error_and_leaves_the_target_as_it_was(target: Path) -> None:
    with (
        files_limited_to(1000),
        pytest.raises(DataError, match=r"result\.json: can't be written: File too large"),
        atomic_path(target) as temporary,
    ):
        temporary.write_bytes(bytes(2000))
    assert target.read_text() == "old"
    assert list(target.parent.iterdir()) == [target]


def test_a_missing_folder_is_reported_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the folder .*absent does not exist"), atomic_path(tmp_path / "absent" / "x"):
        pytest.fail("the block was entered")


def test_a_folder_is_no_target(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is a folder"), atomic_path(tmp_path):
        pytest.fail("the block was entered")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_write_permission_is_reported_before_any_work(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(DataError, match="is not writable"), atomic_path(tmp_path / "x"):
        pytest.fail("the block was entered")


def test_a_temporary_file_that_the_caller_removed_is_a_data_error(target: Path) -> None:
    with pytest.raises(DataError, match="can't be written"), atomic_path(target) as temporary:
        temporary.unlink()
    assert target.read_text() == "old"


def test_a_new_file_has_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    with atomic_path(tmp_path / "atomic"):
        pass
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_the_target_keeps_its_permissions(target: Path) -> None:
    target.chmod(0o640)
    with atomic_path(target):
        pass
    assert target.stat().st_mode & 0o777 == 0o640


def test_a_symbolic_link_stays_one(target: Path) -> None:
    link = target.with_name("link.json")
    link.symlink_to(target)
    with atomic_path(link) as temporary:
        temporary.write_text("new")
    assert link.is_symlink()
    assert target.read_text() == "new"
