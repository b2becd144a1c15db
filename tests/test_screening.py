"""Screening a file: one row out for each row in, in order, whatever the formats."""

from __future__ import annotations

import datetime
import decimal
import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from models import LONG_PROMPT, PROMPTS
from tables import read_rows, write_prompts

from latentguard import DataError, LatentGuard, LatentGuardError, Policy
from latentguard.screening import ScreeningOptions, ScreeningSummary, print_verdicts, screen_file
from latentguard.screening.options import Selection

SCREENED = [*PROMPTS, LONG_PROMPT, PROMPTS[0], 'n\u0430ked, "quoted"', "n a k e d"]


@pytest.fixture
def guard(tiny_guard: LatentGuard) -> LatentGuard:
    """Blocks about half of the prompts."""
    scores = sorted(tiny_guard.score(SCREENED))
    tiny_guard.policy = Policy(float(scores[len(scores) // 2]) + 1e-3)
    return tiny_guard


@pytest.mark.parametrize("output", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("source", [".txt", ".csv", ".jsonl", ".parquet"])
def test_every_prompt_has_its_row_in_order(guard: LatentGuard, tmp_path: Path, source: str, output: str) -> None:
    path = write_prompts(tmp_path / f"prompts{source}", SCREENED)
    screen_file(guard, path, tmp_path / f"verdicts{output}")
    rows = read_rows(tmp_path / f"verdicts{output}")
    verdicts = guard.check_batch(SCREENED)
    assert [list(row) for row in rows] == [["prompt", "score", "concept", "blocked"]] * len(SCREENED)
    assert [row["prompt"] for row in rows] == SCREENED
    assert [row["score"] for row in rows] == [verdict.score for verdict in verdicts]
    assert [row["concept"] for row in rows] == [verdict.concept for verdict in verdicts]
    assert [row["blocked"] for row in rows] == [verdict.blocked for verdict in verdicts]
    assert {row["blocked"] for row in rows} == {True, False}


def test_a_prompt_of_several_lines_is_one_row(guard: LatentGuard, tmp_path: Path) -> None:
    prompts = ["a red wine\non the table", "sunset\r\n", "knight"]
    screen_file(guard, write_prompts(tmp_path / "in.csv", prompts), tmp_path / "out.csv")
    assert [row["prompt"] for row in read_rows(tmp_path / "out.csv")] == prompts


def test_more_prompts_than_are_held_at_once_keep_their_order(guard: LatentGuard, tmp_path: Path) -> None:
    prompts = [f"knight {number}" for number in range(1_100)]
    summary = screen_file(guard, write_prompts(tmp_path / "in.txt", prompts), tmp_path / "out.jsonl")
    assert summary.prompts == 1_100
    assert [row["prompt"] for row in read_rows(tmp_path / "out.jsonl")] == prompts


def test_the_prompts_can_stand_in_another_column(guard: LatentGuard, tmp_path: Path) -> None:
    path = write_prompts(tmp_path / "in.csv", PROMPTS, column="caption")
    screen_file(guard, path, tmp_path / "out.csv", column="caption")
    assert [row["prompt"] for row in read_rows(tmp_path / "out.csv")] == list(PROMPTS)


def test_the_summary_counts_what_was_decided(guard: LatentGuard, tmp_path: Path) -> None:
    guard.policy = Policy(guard.policy.threshold, flag_margin=0.5)
    verdicts = guard.check_batch(SCREENED)
    summary = screen_file(guard, write_prompts(tmp_path / "in.txt", SCREENED), tmp_path / "out.csv")
    assert summary.prompts == len(SCREENED)
    assert summary.blocked == sum(verdict.blocked for verdict in verdicts) == sum(summary.by_category.values())
    assert summary.flagged == sum(verdict.decision == "flag" for verdict in verdicts)


def test_the_summary_reads_as_one_line() -> None:
    summary = ScreeningSummary(1_200, 30, 4, {"hate": 9, "sexual": 21})
    assert str(summary) == "1,200 prompts: 30 blocked (sexual 21, hate 9), 4 flagged, 1,166 allowed"


def test_the_input_is_never_its_own_output(guard: LatentGuard, tmp_path: Path) -> None:
    path = write_prompts(tmp_path / "in.csv", PROMPTS)
    before = path.read_bytes()
    link = tmp_path / "link.csv"
    link.symlink_to(path)
    for output in (path, link, tmp_path / ".." / tmp_path.name / "in.csv"):
        with pytest.raises(DataError, match="is the input itself"):
            screen_file(guard, path, output)
    assert path.read_bytes() == before


def test_an_output_that_was_there_is_replaced_when_all_is_well(guard: LatentGuard, tmp_path: Path) -> None:
    output = tmp_path / "out.csv"
    output.write_text("old")
    screen_file(guard, write_prompts(tmp_path / "in.txt", PROMPTS), output)
    assert len(read_rows(output)) == len(PROMPTS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.txt", "out.csv"]


def test_an_error_in_the_last_row_leaves_the_old_output(guard: LatentGuard, tmp_path: Path) -> None:
    output = tmp_path / "out.csv"
    output.write_text("old")
    path = write_prompts(tmp_path / "in.jsonl", ["sunset"] * 700 + [""])
    with pytest.raises(DataError, match=r"in\.jsonl: line 701: field 'prompt' is empty"):
        screen_file(guard, path, output)
    assert output.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.csv"]


# --- several inputs, chosen rows and columns


def test_several_inputs_are_screened_in_order_with_file_and_row(guard: LatentGuard, tmp_path: Path) -> None:
    first = write_prompts(tmp_path / "b.csv", SCREENED[:4])
    second = write_prompts(tmp_path / "a.jsonl", SCREENED[4:])
    screen_file(guard, [first, second], tmp_path / "out.parquet")
    rows = read_rows(tmp_path / "out.parquet")
    assert [row["prompt"] for row in rows] == SCREENED
    assert [row["file"] for row in rows] == [str(first)] * 4 + [str(second)] * (len(SCREENED) - 4)
    assert [row["row"] for row in rows] == [*range(1, 5), *range(1, len(SCREENED) - 3)]


@pytest.mark.parametrize("output", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("only", ["blocked", "flagged", "allowed"])
def test_rows_can_be_chosen_and_tell_which_they_are(
    guard: LatentGuard, tmp_path: Path, only: Selection, output: str
) -> None:
    guard.policy = Policy(guard.policy.threshold, flag_margin=1.0)
    path = write_prompts(tmp_path / "in.txt", SCREENED)
    summary = screen_file(guard, path, tmp_path / f"out{output}", options=ScreeningOptions(only=only))
    verdicts = guard.check_batch(SCREENED)
    decision = {"blocked": "block", "flagged": "flag", "allowed": "allow"}[only]
    expected = [n for n, verdict in enumerate(verdicts, 1) if verdict.decision == decision]
    assert expected
    rows = read_rows(tmp_path / f"out{output}")
    assert [int(row["row"]) for row in rows] == expected
    assert [row["prompt"] for row in rows] == [SCREENED[n - 1] for n in expected]
    assert {str(row["flagged"]).lower() for row in rows} == {str(only == "flagged").lower()}
    assert summary.prompts == len(SCREENED)


@pytest.mark.parametrize("output", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("keep", [("id",), "all"])
def test_other_columns_can_be_kept(guard: LatentGuard, tmp_path: Path, keep: Any, output: str) -> None:
    path = write_prompts(tmp_path / "in.csv", SCREENED)
    screen_file(guard, path, tmp_path / f"out{output}", options=ScreeningOptions(keep=keep))
    rows = read_rows(tmp_path / f"out{output}")
    assert [row["id"] for row in rows] == [str(n) for n in range(len(SCREENED))]
    assert list(rows[0]) == ["prompt", "score", "concept", "blocked", "id"]


def test_columns_keep_their_types_from_parquet_to_parquet(guard: LatentGuard, tmp_path: Path) -> None:
    table = pa.table(
        {
            "when": pa.array([datetime.datetime(2026, 1, 2)] * 2, pa.timestamp("us")),
            "prompt": ["sunset", "knight"],
            "tags": pa.array([["a"], None], pa.list_(pa.string())),
            "price": pa.array([decimal.Decimal("1.50"), None], pa.decimal128(6, 2)),
            "raw": pa.array([b"\xff", b""], pa.binary()),
        }
    )
    pq.write_table(table, tmp_path / "in.parquet")
    options = ScreeningOptions(keep="all")
    screen_file(guard, tmp_path / "in.parquet", tmp_path / "out.parquet", options=options)
    written = pq.read_table(tmp_path / "out.parquet")
    for name in ("when", "tags", "price", "raw"):
        assert written[name].combine_chunks().equals(table[name].combine_chunks())


def test_what_a_jsonl_holds_is_kept_as_it_is_or_as_json(guard: LatentGuard, tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text('{"prompt": "sunset", "tags": ["a", {"b": 1}]}\n{"prompt": "knight"}\n')
    options = ScreeningOptions(keep=["tags"])
    screen_file(guard, path, tmp_path / "out.jsonl", options=options)
    assert [row["tags"] for row in read_rows(tmp_path / "out.jsonl")] == [["a", {"b": 1}], None]
    screen_file(guard, path, tmp_path / "out.parquet", options=options)
    assert [row["tags"] for row in read_rows(tmp_path / "out.parquet")] == ['["a", {"b": 1}]', None]


@pytest.mark.parametrize(
    ("content", "keep", "fault"),
    [
        ('{"prompt": "a", "id": 1}\n', ["no"], r"in\.jsonl: has no column 'no' to keep"),
        ('{"prompt": "a", "score": 1}\n', "all", "the column 'score' can't be kept: the output has one of that name"),
        ('{"prompt": "a", "prompt ": 1}\n{"prompt": "a", "id": 1}\n', "all", r"in\.jsonl: row 2: has a field 'id'"),
    ],
)
def test_columns_that_cannot_be_kept_are_refused(
    guard: LatentGuard, tmp_path: Path, content: str, keep: Any, fault: str
) -> None:
    (tmp_path / "in.jsonl").write_text(content)
    with pytest.raises(DataError, match=fault):
        screen_file(guard, tmp_path / "in.jsonl", tmp_path / "out.csv", options=ScreeningOptions(keep=keep))
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_inputs_with_other_columns_cannot_be_kept_whole(guard: LatentGuard, tmp_path: Path) -> None:
    first = write_prompts(tmp_path / "a.csv", PROMPTS)
    second = write_prompts(tmp_path / "b.txt", PROMPTS)
    with pytest.raises(DataError, match=r"b\.txt: has other columns than .*a\.csv"):
        screen_file(guard, [first, second], tmp_path / "out.csv", options=ScreeningOptions(keep="all"))


def test_a_column_of_two_types_cannot_be_kept(guard: LatentGuard, tmp_path: Path) -> None:
    for name, value in (("a", 1), ("b", "x")):
        pq.write_table(pa.table({"prompt": ["sunset"], "id": [value]}), tmp_path / f"{name}.parquet")
    options = ScreeningOptions(keep=["id"])
    with pytest.raises(DataError, match=r"b\.parquet: the column 'id' is string, before it was int64"):
        screen_file(guard, tmp_path, tmp_path.parent / f"{tmp_path.name}.parquet", options=options)


def test_flagged_rows_are_not_asked_for_in_vain(guard: LatentGuard, tmp_path: Path) -> None:
    path = write_prompts(tmp_path / "in.txt", PROMPTS)
    with pytest.raises(DataError, match="no prompt is flagged as long as the margin for flagging is 0"):
        screen_file(guard, path, tmp_path / "out.csv", options=ScreeningOptions(only="flagged"))


@pytest.mark.parametrize("name", ["in.csv", "in.parquet"])
def test_a_prompt_of_nothing_is_named_by_its_row(guard: LatentGuard, tmp_path: Path, name: str) -> None:
    path = write_prompts(tmp_path / name, ["sunset"] * 600 + ["\u200b\u200d", "knight"])
    with pytest.raises(DataError, match=rf"{name}: prompt 601: empty"):
        screen_file(guard, path, tmp_path / "out.csv")


# --- printed


def printed(guard: LatentGuard, path: Path) -> list[str]:
    stream = io.StringIO()
    print_verdicts(guard, path, stream)
    return stream.getvalue().splitlines()


def test_every_prompt_has_its_printed_line(guard: LatentGuard, tmp_path: Path) -> None:
    _, *lines, blank, summary = printed(guard, write_prompts(tmp_path / "in.txt", PROMPTS))
    for line, verdict in zip(lines, guard.check_batch(PROMPTS), strict=True):
        assert line.split()[:2] == ["BLOCKED" if verdict.blocked else "allowed", f"{verdict.score:.2f}"]
        assert verdict.concept in line
        assert line.endswith(verdict.prompt)
    assert blank == ""
    assert summary.startswith(f"{len(PROMPTS)} prompts: ")
    assert summary.endswith(f"(threshold {guard.policy.threshold:.2f})")


def test_a_prompt_cannot_steer_the_terminal(guard: LatentGuard, tmp_path: Path) -> None:
    prompts = ["red \x1b[2J\x1b]0;title\x07 wine", "red\u202ewine\u2028city", "red\rwine\x9b1m"]
    lines = printed(guard, write_prompts(tmp_path / "in.jsonl", prompts))
    assert len(lines) == len(prompts) + 3
    assert all(line.isprintable() for line in lines)


def test_long_prompts_and_concepts_are_shortened_to_the_lines_width(
    guard: LatentGuard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    guard.concepts.add("the old city in the garden on the old bridge", threshold=-100)
    line = printed(guard, write_prompts(tmp_path / "in.txt", [LONG_PROMPT]))[1]
    assert len(line) <= 100
    assert line.count("…") == 2


def test_a_file_that_cannot_be_screened_prints_nothing_before_its_error(
    tiny_guard: LatentGuard, tmp_path: Path
) -> None:
    path = tmp_path / "prompts.csv"
    path.write_text('prompt\n""\n')
    stream = io.StringIO()
    with pytest.raises(LatentGuardError):
        print_verdicts(tiny_guard, path, stream)
    assert stream.getvalue() == ""


def test_printed_rows_can_be_chosen(guard: LatentGuard, tmp_path: Path) -> None:
    stream = io.StringIO()
    path = write_prompts(tmp_path / "in.txt", SCREENED)
    print_verdicts(guard, path, stream, options=ScreeningOptions(only="blocked"))
    _, *lines, blank, summary = stream.getvalue().splitlines()
    assert len(lines) == sum(verdict.blocked for verdict in guard.check_batch(SCREENED))
    assert all(line.startswith("BLOCKED") for line in lines)
    assert (blank, summary.split()[0]) == ("", str(len(SCREENED)))
