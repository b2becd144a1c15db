"""The command ``screen``: several inputs, folders, and what it refuses."""

from __future__ import annotations

import argparse
import gzip
from pathlib import Path

import pytest
from models import PROMPTS
from tables import read_rows, write_prompts

from latentguard.cli import add_screen, main
from latentguard.screening.options import ScreeningOptions


def screen(model: Path, *arguments: str | Path) -> int:
    return main(["screen", "--model", str(model), "--device", "cpu", *map(str, arguments)])


def test_the_defaults_are_those_of_the_library() -> None:
    parser = argparse.ArgumentParser()
    add_screen(parser)
    given = parser.parse_args(["--file_path", "a.txt"])
    names = ("column", "only", "cache", "near_duplicates", "unusable", "part_rows")
    assert [getattr(given, name) for name in names] == [getattr(ScreeningOptions(), name) for name in names]
    told = parser.format_help().replace("\n", "").replace(" ", "")
    assert f"default:{given.cache};" in told
    assert f"default:{given.part_rows})" in told


def test_files_folders_and_patterns_are_screened_together(tiny_weights: Path, tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    first = write_prompts(tmp_path / "a.csv", PROMPTS[:2])
    write_prompts(tmp_path / "below" / "b.jsonl", PROMPTS[2:3])
    (tmp_path / "c1.txt.gz").write_bytes(gzip.compress("\n".join(PROMPTS[3:]).encode()))
    output = tmp_path / "out.jsonl"
    inputs = ["--file_path", first, tmp_path / "below", "--file_path", tmp_path / "c[0-9].txt.gz"]
    assert screen(tiny_weights, *inputs, "--output", output) == 0
    assert [row["prompt"] for row in read_rows(output)] == list(PROMPTS)
    assert [Path(row["file"]).name for row in read_rows(output)] == ["a.csv"] * 2 + ["b.jsonl"] + ["c1.txt.gz"] * 3


@pytest.mark.parametrize("output", ["out", "out.d", "made"])
def test_a_name_without_suffix_or_a_folder_takes_parts(
    tiny_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], output: str
) -> None:
    path = write_prompts(tmp_path / "in.csv", PROMPTS)
    if output != "out":
        (tmp_path / output).mkdir()
    options = ["--keep", "id", "--only", "allowed", "--flag-margin", "0.1", "--part-rows", "4"]
    assert screen(tiny_weights, "--file_path", path, "--output", tmp_path / output, *options) == 0
    assert [path.name for path in sorted((tmp_path / output).glob("*.parquet"))] == [
        "part-00000-00000.parquet",
        "part-00000-00001.parquet",
    ]
    rows = [row for path in sorted((tmp_path / output).glob("*.parquet")) for row in read_rows(path)]
    assert rows
    assert all(PROMPTS[row["row"] - 1] == row["prompt"] and row["id"] == str(row["row"] - 1) for row in rows)
    assert capsys.readouterr().out.startswith(f"{tmp_path / output}: 6 prompts: ")


def test_rows_that_can_not_be_used_are_blocked_if_asked_for(
    tiny_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_prompts(tmp_path / "in.csv", [PROMPTS[0], ""])
    assert screen(tiny_weights, "--file_path", path, "--output", tmp_path / "out.csv") == 2
    assert "row 2 (line 3): field 'prompt' is empty" in capsys.readouterr().err
    assert screen(tiny_weights, "--file_path", path, "--output", tmp_path / "out.jsonl", "--unusable", "block") == 0
    assert [row["fault"] for row in read_rows(tmp_path / "out.jsonl")] == [
        None,
        "row 2 (line 3): field 'prompt' is empty",
    ]


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (["--keep", "id"], "--keep carries columns into a file: give it one with --output"),
        (["--only", "flagged"], "no prompt is flagged as long as the margin for flagging is 0"),
        (["--flag-margin", "-1"], "flag_margin: -1.0 is below 0"),
        (["--cache", "-1"], "the number of remembered prompts is -1, which is below 0"),
        (["--part-rows", "0", "--output", "out"], "the number of rows a part is 0, which is below 1"),
        (["--near-duplicates", "2"], "the similarity of near duplicates is 2.0, not between 0.5 and 1"),
        (["--output", "absent/out"], "absent/out: the folder absent does not exist"),
        (["--output", "."], "the input in.csv is in it; give another folder for the output"),
        (["--keep", "no", "--output", "out"], "in.csv: has no column 'no' to keep"),
        (["--file_path", "in.csv"], "in.csv: is given twice"),
        (["--file_path", "*.nothing"], "*.nothing: matches no file"),
    ],
)
def test_a_mistake_is_one_line(
    tiny_weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    fault: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_prompts(tmp_path / "in.csv", PROMPTS)
    assert screen(tiny_weights, "--file_path", "in.csv", *options) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.endswith(f"{fault}\n")
    assert printed.err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["in.csv"]
