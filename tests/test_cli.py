"""The command line: what each command takes, prints and writes, and the exit status it ends with."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cli_runner import ROOT, command, environment, run
from models import CONCEPTS, LONG_PROMPT, PROMPTS, random_heads, random_mapping
from tables import read_rows, write_prompts

from latentguard import LatentGuard
from latentguard.cli import main
from latentguard.encoders.huggingface import HuggingFaceEncoder
from latentguard.weights import WeightsConfig, save_weights


def screen(model: Path, *arguments: str | Path) -> int:
    return main(["screen", "--model", str(model), "--device", "cpu", *map(str, arguments)])


# --- screen


def test_a_file_is_screened_into_another(
    tiny_weights: Path, tiny_guard: LatentGuard, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, output = write_prompts(tmp_path / "in.csv", PROMPTS), tmp_path / "out.jsonl"
    assert screen(tiny_weights, "--file_path", path, "--output", output) == 0
    verdicts = tiny_guard.check_batch(PROMPTS)
    assert [row["blocked"] for row in read_rows(output)] == [verdict.blocked for verdict in verdicts]
    printed = capsys.readouterr()
    assert printed.out.startswith(f"{output}: {len(PROMPTS)} prompts: ")
    assert printed.err == ""


def test_without_an_output_the_verdicts_are_printed(
    tiny_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert screen(tiny_weights, "--file_path", write_prompts(tmp_path / "in.txt", PROMPTS)) == 0
    printed = capsys.readouterr().out
    assert all(prompt in printed for prompt in PROMPTS)
    assert "(threshold 3.50)" in printed


def test_the_threshold_can_be_given(tiny_weights: Path, tmp_path: Path) -> None:
    path, output = write_prompts(tmp_path / "in.txt", PROMPTS), tmp_path / "out.csv"
    for threshold, blocked in (("-100", True), ("100", False)):
        assert screen(tiny_weights, "--file_path", path, "--output", output, "--threshold", threshold) == 0
        assert {row["blocked"] for row in read_rows(output)} == {blocked}


@pytest.mark.parametrize(("name", "content"), [("c.txt", "river\nred wine\n"), ("c.json", '["river", "red wine"]')])
def test_the_bank_can_be_given(tiny_weights: Path, tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    path, output = write_prompts(tmp_path / "in.txt", PROMPTS), tmp_path / "out.csv"
    assert screen(tiny_weights, "--file_path", path, "--output", output, "--concepts", tmp_path / name) == 0
    assert {row["concept"] for row in read_rows(output)} <= {"river", "red wine"}


def test_the_column_can_be_given(tiny_weights: Path, tmp_path: Path) -> None:
    path, output = write_prompts(tmp_path / "in.parquet", PROMPTS, column="caption"), tmp_path / "out.parquet"
    assert screen(tiny_weights, "--file_path", path, "--output", output, "--column", "caption") == 0
    assert [row["prompt"] for row in read_rows(output)] == list(PROMPTS)


# --- evaluate


def labelled(path: Path, column: str = "other") -> Path:
    rows = ["prompt,unsafe,category," + column, *(f'"{p}",{i % 2},c{i % 3},{i}' for i, p in enumerate(PROMPTS))]
    path.write_text("\n".join(rows) + "\n")
    return path


def test_a_guard_is_measured_with_table_file_and_pictures(
    tiny_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, plots, figures = labelled(tmp_path / "set.csv"), tmp_path / "plots", tmp_path / "figures.json"
    arguments = ["--data", str(path), "--reference", "other", "--plots", str(plots), "--output", str(figures)]
    assert main(["evaluate", "--model", str(tiny_weights), *arguments]) == 0
    printed = capsys.readouterr().out
    assert "| set | 6 | " in printed
    assert "set: c1: " in printed
    [report] = json.loads(figures.read_text())
    assert (report["file"], report["prompts"], report["unsafe"]) == ("set", 6, 3)
    assert {p.name for p in plots.iterdir()} == {"roc.png", "scores_set.png", "tsne_set.png"}


def test_a_reference_that_no_file_has_is_an_error(
    tiny_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--data", str(labelled(tmp_path / "set.csv"))]
    assert main(["evaluate", "--model", str(tiny_weights), *data, "--reference", "typo"]) == 2
    assert "'typo'" in capsys.readouterr().err


def test_figures_that_could_not_be_written_are_not_computed(
    tiny_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--data", str(labelled(tmp_path / "set.csv"))]
    assert main(["evaluate", "--model", str(tiny_weights), *data, "--output", str(tmp_path / "no" / "f.json")]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "does not exist" in printed.err


@pytest.fixture
def headed_weights(tiny_encoder: HuggingFaceEncoder, tmp_path: Path) -> Path:
    mapping, heads = random_mapping(), random_heads()
    shape, combination = heads.prompt_head.shape, heads.combination
    config = WeightsConfig(tiny_encoder.name, mapping.shape, 0.5, prompt_head=shape, combination=combination)
    return save_weights(tmp_path / "headed", mapping, config, CONCEPTS, "# With heads\n", heads)


def test_weights_with_heads_have_their_calibration_error_printed_and_drawn(
    headed_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, plots = labelled(tmp_path / "set.csv"), tmp_path / "plots"
    assert main(["evaluate", "--model", str(headed_weights), "--data", str(path), "--plots", str(plots)]) == 0
    assert "set: expected calibration error 0." in capsys.readouterr().out
    assert (plots / "reliability_set.png").is_file()


# --- robustness


@pytest.fixture
def own_files(tmp_path: Path) -> list[str]:
    """The options that give `robustness` small files of its own."""
    pairs = ["prompt,neutral,attribute,group", "an old cat,a cat,age,old", "a naked dog,a dog,dress,naked"]
    uses = ["prompt,word", *(f'"{prompt}",w{i % 2}' for i, prompt in enumerate(PROMPTS))]
    evasions = ["prompt,kind,category", *(f'"{prompt}",k{i % 2},c{i % 3}' for i, prompt in enumerate(PROMPTS))]
    styles = ["prompt,artist", *(f'"{prompt}",Goya' for prompt in PROMPTS)]
    options = []
    files = (("fairness", pairs), ("harmless-uses", uses), ("artist-styles", styles), ("evasions", evasions))
    for name, lines in files:
        (tmp_path / f"{name}.csv").write_text("\n".join(lines) + "\n")
        options += [f"--{name}", str(tmp_path / f"{name}.csv")]
    return options


def test_a_guards_robustness_is_measured_with_tables_file_and_pictures(
    tiny_weights: Path, own_files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, plots, figures = labelled(tmp_path / "set.csv"), tmp_path / "plots", tmp_path / "figures.json"
    (tmp_path / "c.txt").write_text("river\nred wine\n")
    options = ["--labelled", str(path), "--concepts", str(tmp_path / "c.txt"), "--explain", str(path), str(path)]
    options += ["--plots", str(plots), "--output", str(figures), "--device", "cpu"]
    assert main(["robustness", "--model", str(tiny_weights), *own_files, *options]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("Threshold 3.5, 5 concepts.\n\n## Fairness\n")
    assert "## Attacks on set, against 2 concepts" in printed
    report = json.loads(figures.read_text())
    assert (report["fairness"]["overall"]["pairs"], report["evasions"]["overall"]["prompts"]) == (2, 6)
    assert {p.name for p in plots.iterdir()} == {"fairness.png", "evasions.png", "attacks_roc.png"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--concepts", "c.txt"], "--labelled, which is missing"),
        (["--fairness", "no.csv"], "no.csv: does not exist"),
        (["--output", "no/figures.json"], "does not exist"),
        (["--model", "no/such/weights"], "no such weights"),
    ],
)
def test_a_mistake_in_what_robustness_is_given_is_one_line(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["robustness", *options]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert message in printed.err
    assert printed.err.count("\n") == 1


# --- calibrate


def calibrate(model: Path, data: Path, *options: str | Path) -> int:
    arguments = ["calibrate", "--model", str(model), "--data", str(data), "--rate", "0.2", "--device", "cpu"]
    return main([*arguments, *map(str, options)])


def test_the_threshold_for_a_rate_is_printed_with_what_it_promises(
    tiny_weights: Path, tiny_guard: LatentGuard, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "own.csv"
    rows = [*((prompt, 0) for prompt in (*PROMPTS, PROMPTS[0])), ("gun", 1)]
    data.write_text("prompt,unsafe\n" + "".join(f'"{prompt}",{label}\n' for prompt, label in rows))
    before = sorted(tiny_weights.rglob("*"))
    assert calibrate(tiny_weights, data) == 0
    lines = capsys.readouterr().out.splitlines()
    threshold = float(lines[0].removeprefix("threshold ").removesuffix(" (before: 3.5)"))
    assert lines[1:4] == [
        f"6 harmless prompts, {(tiny_guard.score(PROMPTS) >= threshold).sum()} of them blocked",
        "left out as repetitions, since each prompt counts once: 1",
        "left out as labelled unsafe: 1",
    ]
    assert lines[4].startswith("guarantee: a further harmless prompt of the same kind")
    assert lines[5].startswith("beyond it: with 95% confidence")
    assert len(lines) == 6
    assert sorted(tiny_weights.rglob("*")) == before


def test_calibrated_weights_screen_with_their_threshold_and_bank(
    tiny_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, concepts, made = write_prompts(tmp_path / "own.txt", PROMPTS), tmp_path / "c.txt", tmp_path / "made"
    concepts.write_text("river\nred wine\n")
    assert calibrate(tiny_weights, data, "--concepts", concepts, "--output", made) == 0
    printed = capsys.readouterr().out
    assert printed.endswith(f"wrote {made}\n")
    guard = LatentGuard.from_pretrained(made)
    assert guard.concepts.names == ["river", "red wine"]
    assert f"threshold {np.float32(guard.policy.threshold)!s} (before: 3.5)" in printed
    assert f", {sum(verdict.blocked for verdict in guard.check_batch(PROMPTS))} of them blocked" in printed
    card = (made / "README.md").read_text()
    assert "6 harmless\nprompts of own.txt" in card
    assert str(tmp_path) not in card + (made / "config.json").read_text()


def test_weights_of_ones_own_are_calibrated_in_place(tiny_weights: Path, tmp_path: Path) -> None:
    own = shutil.copytree(tiny_weights, tmp_path / "own")
    assert calibrate(own, write_prompts(tmp_path / "own.txt", PROMPTS), "--in-place") == 0
    assert LatentGuard.from_pretrained(own).policy.threshold != 3.5
    assert LatentGuard.from_pretrained(tiny_weights).policy.threshold == 3.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rate", "0.1"], "6 harmless prompts are too few for a rate of 0.1: give at least 9"),
        (["--rate", "1.5"], "between 0 and 1"),
        (["--in-place", "--model", "minilm-l6"], "no folder to change in place"),
        (["--output", "."], "is there already"),
        (["--column", "typo"], "no column 'typo'"),
        (["--concepts", "no.txt"], "no.txt: does not exist"),
    ],
)
def test_a_mistake_in_what_calibrate_is_given_is_one_line(
    tiny_weights: Path, tmp_path: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(tmp_path.rglob("*"))
    data = write_prompts(tmp_path / "own.csv", PROMPTS)
    assert calibrate(tiny_weights, data, *options) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == sorted([*before, data])


# --- mistakes in the command itself


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["scream"],
        ["screen"],
        ["screen", "--file_path"],
        ["screen", "--file_path", "a.txt", "--treshold", "3"],
        ["screen", "--file_path", "a.txt", "--threshold", "high"],
        ["screen", "--file_path", "a.txt", "--threshold", "nan"],
        ["evaluate"],
        ["robustness", "--attacks"],
        ["calibrate"],
        ["calibrate", "--data", "a.txt", "--rate", "nan"],
        ["calibrate", "--data", "a.txt", "--output", "folder", "--in-place"],
        ["train", "--data", "a.csv"],
        ["join", "--mapping", "a", "--prompt-head", "b", "--output", "c"],
        ["import-official", "model.pth", "--output", "folder"],
    ],
)
def test_a_command_that_is_not_understood_is_one_line_and_status_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.endswith("(try --help)\n")


@pytest.mark.parametrize(
    "arguments", [[], ["screen"], ["train"], ["evaluate"], ["robustness"], ["calibrate"], ["join"], ["import-official"]]
)
def test_every_command_has_help(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*arguments, "--help"])
    assert caught.value.code == 0
    assert "--help" in capsys.readouterr().out


# --- as processes


def test_the_published_command_screens_a_file(embedded_weights: Path, tmp_path: Path) -> None:
    path, output = write_prompts(tmp_path / "in.txt", [*PROMPTS, LONG_PROMPT]), tmp_path / "out.csv"
    done = run("--file_path", path, "--model", embedded_weights, "--output", output, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert [row["prompt"] for row in read_rows(output)] == [*PROMPTS, LONG_PROMPT]
    assert {row["concept"] for row in read_rows(output)} <= {concept.name for concept in CONCEPTS}


@pytest.mark.parametrize("script", [["inference.py"], ["train.py"], ["-m", "latentguard"]])
def test_help_needs_no_model_library(script: list[str]) -> None:
    """PyTorch takes seconds to import, so help and mistakes come before it."""
    looking = "import sys, runpy; sys.argv = sys.argv[1:]; sys.modules['torch'] = None\n"
    looking += "runpy.run_module('latentguard', run_name='__main__') if sys.argv[0] == '-m' else "
    looking += "runpy.run_path(sys.argv[0], run_name='__main__')"
    arguments = ["-m"] if script[0] == "-m" else script
    done = subprocess.run(
        [sys.executable, "-c", looking, *arguments, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_reader_that_goes_away_is_no_error(embedded_weights: Path, tmp_path: Path) -> None:
    path = write_prompts(tmp_path / "in.txt", PROMPTS)
    arguments = command("--file_path", path, "--model", embedded_weights)
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        error = process.stderr.read()
    assert (process.returncode, error) == (141, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_output_to_a_full_disk_is_one_line_and_status_2(embedded_weights: Path, tmp_path: Path) -> None:
    path = write_prompts(tmp_path / "in.txt", PROMPTS)
    with open("/dev/full", "w") as full:
        done = run("--file_path", path, "--model", embedded_weights, capture_output=False, stdout=full, stderr=-1)
    assert (done.returncode, done.stderr) == (2, "inference.py: standard output: No space left on device\n")


def test_a_terminal_without_unicode_still_gets_its_lines(embedded_weights: Path, tmp_path: Path) -> None:
    path = write_prompts(tmp_path / "in.txt", ["café 刀 knight"])
    done = run("--file_path", path, "--model", embedded_weights, env=environment(PYTHONIOENCODING="ascii"))
    assert (done.returncode, done.stderr) == (0, "")
    assert "caf? ? knight" in done.stdout


def test_on_a_terminal_the_lines_have_colour_and_no_progress_bar_among_them(
    embedded_weights: Path, tmp_path: Path
) -> None:
    path = write_prompts(tmp_path / "in.txt", PROMPTS)
    ours, theirs = pty.openpty()
    arguments = command("--file_path", path, "--model", embedded_weights, "--threshold", "-100")
    process = subprocess.Popen(arguments, stdout=theirs, stderr=theirs, env=environment(TERM="xterm"))
    os.close(theirs)
    seen = b""
    while chunk := _read(ours):
        seen += chunk
    os.close(ours)
    assert process.wait() == 0
    assert seen.count(b"\x1b[31;1mBLOCKED\x1b[0m") == len(PROMPTS)
    assert b"screening" not in seen


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:  # how Linux says that the other side has closed
        return b""
