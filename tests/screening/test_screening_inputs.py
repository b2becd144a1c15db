"""Which files names stand for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from latentguard import DataError
from latentguard.screening.inputs import InputState, check_unchanged, digest_of, find_inputs


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder with prompt files, hidden ones, and a folder with more."""
    for name in ("b.txt", "a.csv.gz", "below/c.jsonl.zst", ".hidden.txt", "_SUCCESS", "_old/d.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("a cat\n")
    return tmp_path


def names(tree: Path, *given: str) -> list[str]:
    return [str(path.relative_to(tree)) for path in find_inputs([tree / name for name in given])]


def test_a_folder_is_its_files_and_those_of_its_folders_without_hidden_ones(tree: Path) -> None:
    assert names(tree, ".") == ["a.csv.gz", "b.txt", "below/c.jsonl.zst"]


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (["*.txt"], ["b.txt"]),
        (["**/*.zst"], ["below/c.jsonl.zst"]),
        (["[ab].*"], ["a.csv.gz", "b.txt"]),
        (["b.txt", "a.*"], ["b.txt", "a.csv.gz"]),
    ],
)
def test_patterns_are_sorted_and_names_keep_their_order(tree: Path, given: list[str], found: list[str]) -> None:
    assert names(tree, *given) == found


def test_a_file_with_the_signs_of_a_pattern_in_its_name_is_that_file(tree: Path) -> None:
    (tree / "[b].txt").write_text("a dog\n")
    assert names(tree, "[b].txt") == ["[b].txt"]


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        (["absent.txt"], "absent.txt: does not exist"),
        (["*.parquet"], "matches no file"),
        (["b.txt", "below/../b.txt"], "b.txt: is given twice"),
        (["b.txt", "."], "b.txt: is given twice"),
        (["empty"], "the folder has no files"),
    ],
)
def test_names_that_stand_for_nothing_or_twice_for_a_file_are_refused(tree: Path, given: list[str], fault: str) -> None:
    (tree / "empty").mkdir()
    with pytest.raises(DataError, match=fault):
        names(tree, *given)


def test_a_file_of_another_kind_in_a_folder_is_not_passed_over(tree: Path) -> None:
    (tree / "prompts.xlsx").touch()
    with pytest.raises(DataError, match=r"prompts\.xlsx: its suffix is none of"):
        names(tree, ".")


@pytest.mark.parametrize("name", [b"a\nb.txt", b"caf\xe9.txt", b"a\x1b[2Jb.txt"], ids=["line", "latin-1", "escape"])
def test_a_name_that_no_manifest_or_message_can_hold_is_refused(tree: Path, name: bytes) -> None:
    Path(os.fsdecode(bytes(tree / "below") + b"/" + name)).write_text("a cat\n")
    with pytest.raises(DataError, match="a file's name must be UTF-8 without control characters") as raised:
        names(tree, "below")
    assert str(raised.value).isprintable()


def test_a_linked_folder_in_a_folder_is_not_passed_over(tree: Path) -> None:
    (tree / "below" / "loop").symlink_to(tree)
    with pytest.raises(DataError, match=r"below/loop: is a link to a folder; name that folder itself"):
        names(tree, ".")


def test_a_linked_folder_that_is_named_is_that_folder(tree: Path) -> None:
    (tree / "link").symlink_to(tree / "below")
    assert names(tree, "link") == ["link/c.jsonl.zst"]


def test_a_pipe_has_no_state(tree: Path) -> None:
    os.mkfifo(tree / "pipe.txt")
    with pytest.raises(DataError, match=r"pipe\.txt: is a pipe or a device"):
        InputState.of(tree / "pipe.txt")


def test_a_file_that_somebody_wrote_to_is_noticed(tree: Path) -> None:
    path, state = tree / "b.txt", InputState.of(tree / "b.txt")
    check_unchanged(path, state)
    before = digest_of(path)
    path.write_text("a dog\n")
    with pytest.raises(DataError, match=r"b\.txt: was changed while it was being screened"):
        check_unchanged(path, state)
    assert digest_of(path) != before
