"""Screening into a folder: parts that hold each row once, whatever happened on the way."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from cli_runner import command, run
from disk import files_limited_to
from filelock import FileLock
from models import CONCEPTS, PROMPTS, WORDS
from tables import read_rows, write_prompts

from latentguard import DataError, LatentGuard, Policy
from latentguard.lexicon import WordRarity
from latentguard.screening import ScreeningOptions, screen_file
from latentguard.screening.folder import opened_folder, screen_folder
from latentguard.screening.inputs import InputState
from latentguard.screening.layout import layout_of
from latentguard.screening.manifest import GuardIdentity, Plan
from latentguard.screening.parts import Part, Source, read_parts

SMALL = ScreeningOptions(part_rows=50)


def made_up(count: int, seed: int = 0) -> list[str]:
    chosen = random.Random(seed)
    return [" ".join(chosen.choices(WORDS, k=chosen.randint(2, 12))) for _ in range(count)]


@pytest.fixture
def guard(tiny_guard: LatentGuard) -> LatentGuard:
    """Blocks about half of the prompts."""
    scores = sorted(tiny_guard.score(made_up(101)))
    tiny_guard.policy = Policy(float(scores[50]))
    return tiny_guard


def parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("part-*.parquet"))


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [row for path in parts(folder) for row in read_rows(path)]


def manifest(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "_manifest.json").read_text())
    return found


def compared(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows whose scores may differ in the last bits, as they do with a batch's width."""
    return [row | {"score": pytest.approx(row["score"], abs=1e-4)} for row in rows]


def read(path: Path, options: ScreeningOptions) -> Iterator[Part]:
    layout = layout_of([path], options, flags=False, parquet=True)
    return read_parts(Source(0, path, InputState.of(path)), options, layout, {})


def test_a_folder_has_the_rows_of_a_file_in_parts(guard: LatentGuard, tmp_path: Path) -> None:
    inputs = [
        write_prompts(tmp_path / "b.csv", made_up(120)),
        write_prompts(tmp_path / "a.jsonl", made_up(50, seed=1)),
        write_prompts(tmp_path / "c.csv", made_up(3, seed=2)),
    ]
    options = ScreeningOptions(part_rows=50, keep=["id"], only="blocked")
    one_file = screen_file(guard, inputs, tmp_path / "one.parquet", options=options)
    summary = screen_folder(guard, inputs, tmp_path / "out", options=options)
    assert rows_of(tmp_path / "out") == compared(read_rows(tmp_path / "one.parquet"))
    assert 0 < one_file.blocked < one_file.prompts
    assert summary == one_file
    assert [path.name for path in parts(tmp_path / "out")] == [
        *(f"part-00000-0000{n}.parquet" for n in range(3)),
        "part-00001-00000.parquet",
        "part-00002-00000.parquet",
    ]
    # As any reader of Parquet folders takes it, manifest and all.
    assert pq.read_table(tmp_path / "out").num_rows == one_file.blocked


def test_the_manifest_tells_what_was_screened_by_what(guard: LatentGuard, tmp_path: Path) -> None:
    path = write_prompts(tmp_path / "in.csv", made_up(120))
    screen_folder(guard, path, tmp_path / "out", options=SMALL)
    found = manifest(tmp_path / "out")
    assert (found["complete"], found["rows"], found["parts"]) == (True, 120, 3)
    assert found["inputs"][0]["path"] == str(path)
    assert found["inputs"][0]["size"] == path.stat().st_size
    digest = subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True).stdout.split()[0]
    assert found["inputs"][0]["sha256"] == digest
    assert found["guard"]["threshold"] == guard.policy.threshold
    assert found["guard"]["concepts"] == len(CONCEPTS)


def test_the_same_run_again_does_nothing_but_tell_its_numbers(guard: LatentGuard, tmp_path: Path) -> None:
    path = write_prompts(tmp_path / "in.csv", made_up(120))
    first = screen_folder(guard, path, tmp_path / "out", options=SMALL)
    before = {part: (part.stat().st_ino, part.stat().st_mtime_ns) for part in parts(tmp_path / "out")}
    assert screen_folder(guard, path, tmp_path / "out", options=SMALL) == first
    assert {part: (part.stat().st_ino, part.stat().st_mtime_ns) for part in parts(tmp_path / "out")} == before


def test_only_what_is_missing_is_made_again(guard: LatentGuard, tmp_path: Path) -> None:
    path = write_prompts(tmp_path / "in.csv", made_up(230))
    first = screen_folder(guard, path, tmp_path / "out", options=SMALL)
    rows = rows_of(tmp_path / "out")
    missing = [parts(tmp_path / "out")[n] for n in (1, 4)]
    for part in missing:
        part.unlink()
    before = {part: part.stat().st_ino for part in parts(tmp_path / "out")}
    assert screen_folder(guard, path, tmp_path / "out", options=SMALL) == first
    assert rows_of(tmp_path / "out") == compared(rows)
    assert {part: part.stat().st_ino for part in parts(tmp_path / "out") if part not in missing} == before


def test_a_row_that_cannot_be_used_ends_the_run_and_leaves_whole_parts(guard: LatentGuard, tmp_path: Path) -> None:
    path = write_prompts(tmp_path / "in.jsonl", [*made_up(170), " "])
    with pytest.raises(DataError, match=r"in\.jsonl: line 171: field 'prompt' is empty"):
        screen_folder(guard, path, tmp_path / "out", options=SMALL)
    assert [row["prompt"] for row in rows_of(tmp_path / "out")] == made_up(170)[:150]
    assert manifest(tmp_path / "out")["complete"] is False


def test_a_full_disk_ends_the_run_with_nothing_half_written(guard: LatentGuard, tmp_path: Path) -> None:
    path = write_prompts(tmp_path / "in.txt", made_up(200))
    options = ScreeningOptions(part_rows=200)
    with files_limited_to(4_000), pytest.raises(DataError, match=r"part-.*can't be written: .*File too large"):
        screen_folder(guard, path, tmp_path / "out", options=options)
    assert {each.name for each in (tmp_path / "out").iterdir()} <= {".lock", "_manifest.json"}
    assert screen_folder(guard, path, tmp_path / "out", options=options).prompts == 200


def test_long_prompts_end_a_part_early(tmp_path: Path) -> None:
    prompts = [f"{n} " + "x" * 99_990 for n in range(200)]
    path = write_prompts(tmp_path / "in.txt", prompts)
    options = ScreeningOptions(part_rows=1_000)
    found = list(read(path, options))
    assert [part.table.num_rows for part in found] == [168, 32]
    assert [part.first_row for part in found] == [1, 169]
    assert [part.last for part in found] == [False, True]
    assert sum(part.bytes_read for part in found) == path.stat().st_size


# --- refused


def other_input(guard: LatentGuard, path: Path) -> ScreeningOptions:
    path.write_text(path.read_text().replace("\n", " cat\n", 1))
    return SMALL


def other_concepts(guard: LatentGuard, path: Path) -> ScreeningOptions:
    guard.concepts.add("sunset")
    return SMALL


def other_threshold(guard: LatentGuard, path: Path) -> ScreeningOptions:
    guard.policy = Policy(guard.policy.threshold + 0.5)
    return SMALL


def other_weights(guard: LatentGuard, path: Path) -> ScreeningOptions:
    guard.mapping.temperature.data += 0.1
    return SMALL


def other_parts(guard: LatentGuard, path: Path) -> ScreeningOptions:
    return ScreeningOptions(part_rows=60)


def other_rows(guard: LatentGuard, path: Path) -> ScreeningOptions:
    return ScreeningOptions(part_rows=50, only="blocked")


def other_column(guard: LatentGuard, path: Path) -> ScreeningOptions:
    return ScreeningOptions(part_rows=50, column="text")


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (other_column, r"was begun with another column \(prompt\)"),
        (other_input, r"was begun when .*in\.txt was another file"),
        (other_concepts, "was begun with another guard"),
        (other_threshold, "was begun with another guard"),
        (other_weights, "was begun with another guard"),
        (other_parts, r"was begun with another part_rows \(50\)"),
        (other_rows, r"was begun with another only \(None\)"),
    ],
)
def test_a_run_is_not_gone_on_with_as_another(guard: LatentGuard, tmp_path: Path, change: Any, fault: str) -> None:
    path = write_prompts(tmp_path / "in.txt", made_up(120))
    screen_folder(guard, path, tmp_path / "out", options=SMALL)
    parts(tmp_path / "out")[1].unlink()
    before = sorted((tmp_path / "out").iterdir())
    options = change(guard, path)
    with pytest.raises(DataError, match=fault) as raised:
        screen_folder(guard, path, tmp_path / "out", options=options)
    assert "\n" not in str(raised.value)
    assert sorted((tmp_path / "out").iterdir()) == before


def test_a_run_of_another_version_is_another(
    guard: LatentGuard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_prompts(tmp_path / "in.txt", PROMPTS)
    screen_folder(guard, path, tmp_path / "out")
    monkeypatch.setattr("latentguard.screening.manifest.__version__", "99.0")
    with pytest.raises(DataError, match=r"was begun with another guard \(weights, .* or version\)"):
        screen_folder(guard, path, tmp_path / "out")


def test_a_guard_that_takes_other_words_for_rare_is_another(headed_guard: LatentGuard) -> None:
    before = GuardIdentity.of(headed_guard)
    assert GuardIdentity.of(headed_guard) == before
    assert headed_guard.heads is not None
    headed_guard.heads = replace(headed_guard.heads, rarity=WordRarity.of([*PROMPTS, "sword", "sword"]))
    assert GuardIdentity.of(headed_guard) != before


def test_a_run_with_another_list_of_inputs_is_another(guard: LatentGuard, tmp_path: Path) -> None:
    first, second = (write_prompts(tmp_path / name, PROMPTS) for name in ("a.txt", "b.txt"))
    screen_folder(guard, first, tmp_path / "out")
    with pytest.raises(DataError, match="was begun with other inputs"):
        screen_folder(guard, second, tmp_path / "out")


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "is damaged or no part of a run; remove it"),
        (b"PAR1 and so on", "is damaged or no part of a run; remove it"),
    ],
)
def test_a_damaged_part_is_not_taken_for_done(guard: LatentGuard, tmp_path: Path, content: bytes, fault: str) -> None:
    path = write_prompts(tmp_path / "in.txt", made_up(120))
    screen_folder(guard, path, tmp_path / "out", options=SMALL)
    parts(tmp_path / "out")[1].write_bytes(content)
    with pytest.raises(DataError, match=fault):
        screen_folder(guard, path, tmp_path / "out", options=SMALL)


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_a_run_without_one_of_its_parts_is_not_complete(guard: LatentGuard, tmp_path: Path, missing: int) -> None:
    path = write_prompts(tmp_path / "in.txt", made_up(120))
    screen_folder(guard, path, tmp_path / "out", options=SMALL)
    parts(tmp_path / "out")[missing].unlink()
    plan = Plan.of([path], SMALL, GuardIdentity.of(guard), flags=False)
    with (
        opened_folder(tmp_path / "out", plan) as folder,
        pytest.raises(DataError, match=r"parts of .*in\.txt are missing"),
    ):
        folder.finish()


def test_a_part_of_another_run_is_not_taken_for_done(guard: LatentGuard, tmp_path: Path) -> None:
    path = write_prompts(tmp_path / "in.txt", made_up(120))
    for name in ("one", "two"):
        screen_folder(guard, path, tmp_path / name, options=SMALL)
    os.replace(parts(tmp_path / "one")[0], parts(tmp_path / "two")[0])
    with pytest.raises(DataError, match="belongs to another run; remove it"):
        screen_folder(guard, path, tmp_path / "two", options=SMALL)


def test_a_folder_with_other_files_is_left_alone(guard: LatentGuard, tmp_path: Path) -> None:
    path = write_prompts(tmp_path / "in.txt", PROMPTS)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").touch()
    with pytest.raises(DataError, match="the folder has other files"):
        screen_folder(guard, path, tmp_path / "out")
    assert [each.name for each in (tmp_path / "out").iterdir()] == ["thesis.tex"]


def test_the_output_is_no_folder_of_inputs(guard: LatentGuard, tmp_path: Path) -> None:
    write_prompts(tmp_path / "in.txt", PROMPTS)
    with pytest.raises(DataError, match=r"the input .*in\.txt is in it"):
        screen_folder(guard, tmp_path, tmp_path)


def test_two_runs_do_not_write_into_one_folder(guard: LatentGuard, tmp_path: Path) -> None:
    path = write_prompts(tmp_path / "in.txt", PROMPTS)
    screen_folder(guard, path, tmp_path / "out")
    with (
        FileLock(tmp_path / "out" / ".lock"),
        pytest.raises(DataError, match="another process is screening into it"),
    ):
        screen_folder(guard, path, tmp_path / "out")


def test_an_input_that_changes_on_the_way_ends_the_run(tmp_path: Path) -> None:
    path = write_prompts(tmp_path / "in.txt", made_up(120))
    found = read(path, SMALL)
    next(found)
    with open(path, "a") as file:
        file.write("a cat\n")
    with pytest.raises(DataError, match=r"in\.txt: was changed while it was being screened"):
        list(found)


# --- killed


def test_no_row_is_lost_or_doubled_by_kills(embedded_weights: Path, tmp_path: Path) -> None:
    prompts = [f"{number} {prompt}" for number, prompt in enumerate(made_up(1_500))]
    path = write_prompts(tmp_path / "in.csv", prompts)
    output = tmp_path / "out"
    arguments = command(
        *("--file_path", path, "--output", output, "--model", embedded_weights, "--keep", "id", "--part-rows", "30")
    )
    chosen = random.Random(10)
    done = 0
    for _ in range(3):
        wanted = done + chosen.randint(1, 10)
        with subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
            while process.poll() is None and len(parts(output)) < wanted:
                time.sleep(0.005)
            time.sleep(chosen.random() * 0.08)
            assert process.poll() is None, process.communicate()[1]
            process.send_signal(signal.SIGKILL)
            process.wait()
        assert manifest(output)["complete"] is False
        assert len(parts(output)) >= wanted
        done = len(parts(output))
    finished = run(*arguments[2:])
    assert (finished.returncode, finished.stderr) == (0, "")
    assert finished.stdout.startswith(f"{output}: 1,500 prompts: ")
    rows = rows_of(output)
    assert [row["prompt"] for row in rows] == prompts
    assert [row["id"] for row in rows] == [str(number) for number in range(1_500)]
    assert len(parts(output)) == 50
    assert not list(output.glob(".tmp-*"))
    assert (manifest(output)["complete"], manifest(output)["rows"]) == (True, 1_500)


def test_a_difference_is_one_line_on_the_command_line(embedded_weights: Path, tmp_path: Path) -> None:
    path = write_prompts(tmp_path / "in.txt", PROMPTS)
    arguments = ["--file_path", path, "--output", tmp_path / "out", "--model", embedded_weights]
    assert run(*arguments).returncode == 0
    refused = run(*arguments, "--threshold", "1")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith(f"inference.py: {tmp_path / 'out'}: was begun with another guard")
    assert refused.stderr.count("\n") == 1
