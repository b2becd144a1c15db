"""Rows that can't be scored: they end the run, or are written as blocked with the reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from models import PROMPTS
from tables import read_rows, write_prompts

from latentguard import DataError, LatentGuard
from latentguard.screening import ScreeningOptions, print_verdicts, screen_file
from latentguard.screening.folder import screen_folder

BLOCK = ScreeningOptions(unusable="block", keep=["id"], part_rows=2)
LINES = """\
{"id": 1, "prompt": "knight and sword"}
{"id": 2, "prompt": " "}
oops
{"id": 4, "prompt": "\u200b\u200b"}
{"id": 5, "prompt": "sunset and river"}
"""
FAULTS = [
    None,
    "line 2: field 'prompt' is empty",
    "line 3: is not valid JSON (Expecting value; character 1)",
    "prompt 4: empty: it has nothing that can be seen",
    None,
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file in which three of five rows can't be scored, one of them only for what the guard doesn't see."""
    (tmp_path / "in.jsonl").write_text(LINES, encoding="utf-8")
    return tmp_path / "in.jsonl"


def rows_of(output: Path) -> list[dict[str, Any]]:
    files = sorted(output.glob("part-*.parquet")) if output.is_dir() else [output]
    return [row for file in files for row in read_rows(file)]


@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet", "out"])
def test_they_are_written_as_blocked_with_the_reason(tiny_guard: LatentGuard, path: Path, name: str) -> None:
    output = path.parent / name
    screen = screen_folder if name == "out" else screen_file
    summary = screen(tiny_guard, path, output, options=BLOCK)
    rows = rows_of(output)
    assert list(rows[0]) == ["prompt", "score", "concept", "blocked", "fault", "id"]
    assert [row["fault"] for row in rows] == FAULTS
    assert [str(row["id"]) for row in rows] == ["1", "2", "None", "4", "5"]
    for row in rows:
        if row["fault"] is None:
            verdict = tiny_guard.check(row["prompt"])
            assert (row["blocked"], row["concept"]) == (verdict.blocked, verdict.concept)
            assert row["score"] == pytest.approx(verdict.score, abs=1e-4)
        else:
            assert (row["score"], row["concept"], row["blocked"]) == (None, None, True)
    assert (summary.prompts, summary.by_category["unusable"]) == (5, 3)
    assert summary.blocked == sum(row["blocked"] for row in rows)


def test_they_are_among_the_blocked_rows_alone(tiny_guard: LatentGuard, path: Path) -> None:
    for only, numbers in (("blocked", {2, 3, 4}), ("allowed", set())):
        options = ScreeningOptions(unusable="block", only=only)  # type: ignore[arg-type]
        screen_file(tiny_guard, path, path.parent / f"{only}.jsonl", options=options)
        assert {row["row"] for row in rows_of(path.parent / f"{only}.jsonl") if row["fault"]} == numbers


def test_they_end_the_run_unless_asked_for(tiny_guard: LatentGuard, path: Path) -> None:
    with pytest.raises(DataError, match=r"in\.jsonl: line 2: field 'prompt' is empty"):
        screen_folder(tiny_guard, path, path.parent / "out", options=ScreeningOptions(part_rows=2))
    write_prompts(path, [PROMPTS[0], "\u200b"])
    with pytest.raises(DataError, match=r"in\.jsonl: prompt 2: empty: it has nothing that can be seen"):
        screen_folder(tiny_guard, path, path.parent / "out2")


def test_a_run_that_wrote_them_is_not_gone_on_with_without_them(tiny_guard: LatentGuard, path: Path) -> None:
    screen_folder(tiny_guard, path, path.parent / "out", options=BLOCK)
    options = ScreeningOptions(keep=["id"], part_rows=2)
    with pytest.raises(DataError, match=r"was begun with another unusable \(block\)"):
        screen_folder(tiny_guard, path, path.parent / "out", options=options)


def test_such_a_run_goes_on_where_it_ended(tiny_guard: LatentGuard, path: Path) -> None:
    first = screen_folder(tiny_guard, path, path.parent / "out", options=BLOCK)
    before = rows_of(path.parent / "out")
    sorted((path.parent / "out").glob("part-*"))[1].unlink()
    assert screen_folder(tiny_guard, path, path.parent / "out", options=BLOCK) == first
    assert rows_of(path.parent / "out") == before


@pytest.mark.parametrize("name", ["out.csv", "out"])
def test_inputs_without_rows_are_passed_over(tiny_guard: LatentGuard, path: Path, name: str) -> None:
    inputs = [path.parent / each for each in ("empty.csv", "header.csv", "one.csv")]
    for each, content in zip(inputs, ("", "id,prompt\n", "id,prompt\n7,sunset\n"), strict=True):
        each.write_text(content)
    with pytest.raises(DataError, match=r"empty\.csv: has no prompts"):
        screen_file(tiny_guard, inputs, path.parent / "strict.csv", options=ScreeningOptions(keep=["id"]))
    screen = screen_folder if name == "out" else screen_file
    summary = screen(tiny_guard, inputs, path.parent / name, options=BLOCK)
    assert summary.prompts == 1
    assert [(row["prompt"], row["id"]) for row in rows_of(path.parent / name)] == [("sunset", "7")]


def test_their_reasons_are_printed(tiny_guard: LatentGuard, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_verdicts(tiny_guard, path, options=ScreeningOptions(unusable="block"))
    printed = capsys.readouterr().out.splitlines()
    assert printed[2].split() == ["BLOCKED", "(unusable)", *str(FAULTS[1]).split()]
    assert printed[-1].startswith("5 prompts: ")
    assert "unusable 3" in printed[-1]


def test_nothing_is_counted_twice_when_an_unseen_prompt_turns_up(default_guard: LatentGuard, tmp_path: Path) -> None:
    """Its neighbours are gone through once more then, as repetitions and near duplicates of what came before."""
    pytest.importorskip("datasketch", reason="near duplicates need datasketch")
    calm = (
        "a quiet garden with roses and a wooden bench beneath an old apple tree in the soft light of a summer morning"
    )
    prompts = [calm] + ["\n"] * 511 + [calm.upper(), calm, "\u200b"]
    path = tmp_path / "in.txt"
    path.write_text("".join(f"{prompt.strip()}\n" for prompt in prompts), encoding="utf-8")
    options = ScreeningOptions(unusable="block", near_duplicates=0.7)
    summary = screen_file(default_guard, path, tmp_path / "out.csv", options=options)
    assert (summary.prompts, summary.repeated, summary.near_duplicates) == (515, 1, 1)
    assert summary.by_category == {"unusable": 512}


def test_a_kept_value_that_can_not_be_written_is_named_with_its_row(tiny_guard: LatentGuard, path: Path) -> None:
    deep = "[" * 700 + "]" * 700
    path.write_text('{"id": 1, "prompt": "sunset"}\n{"id": ' + deep + ', "prompt": "river"}\n')
    with pytest.raises(DataError, match=r"in\.jsonl: row 2: field 'id' can't be kept: is nested too deep"):
        screen_folder(tiny_guard, path, path.parent / "out", options=ScreeningOptions(keep=["id"]))
