"""Bad input: one clear line that names what is wrong, status 2, and nothing lost or half-written."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cli_runner import command
from disk import files_limited_to
from models import CONCEPTS, PROMPTS, random_mapping, save_tiny_weights
from tables import write_prompts

from latentguard import ConceptBank, DataError, LatentGuard
from latentguard.cli import main
from latentguard.plots import plot_score_histogram
from latentguard.weights import WeightsConfig, load_weights, save_weights

OLD = "what was there before\n"
TEN_MEGABYTES = 10 * 2**20


class Desk:
    """A folder with an output from before, in which a command goes wrong."""

    def __init__(self, folder: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.model, self._capsys = folder, model, capsys
        self.output = folder / "verdicts.csv"
        self.output.write_text(OLD)

    def write(self, name: str, content: str | bytes) -> Path:
        path = self.folder / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def refusal(self, path: Path, *options: str | Path, output: Path | None = None) -> str:
        """The line that screening `path` ends with; whatever there was, is still there, and nothing else."""
        before = sorted(self.folder.rglob("*"))
        target = output or self.output
        arguments = ["screen", "--file_path", path, "--output", target, "--model", self.model, *options]
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as stop:
            status = int(stop.code or 0)
        printed = self._capsys.readouterr()
        assert (status, printed.out) == (2, "")
        assert printed.err.startswith("latentguard")
        assert printed.err.count("\n") == 1
        assert self.output.read_text() == OLD
        assert sorted(self.folder.rglob("*")) == before
        return printed.err


@pytest.fixture
def desk(tmp_path: Path, tiny_weights: Path, capsys: pytest.CaptureFixture[str]) -> Desk:
    return Desk(tmp_path, tiny_weights, capsys)


# --- prompt files


@pytest.mark.parametrize("name", ["p.txt", "p.csv", "p.jsonl", "p.parquet"])
def test_an_empty_file(desk: Desk, name: str) -> None:
    assert f"{name}: " in desk.refusal(desk.write(name, ""))


@pytest.mark.parametrize(("name", "content"), [("p.txt", "\n\n"), ("p.csv", "prompt\n"), ("p.jsonl", " \n")])
def test_a_file_without_prompts(desk: Desk, name: str, content: str) -> None:
    assert f"{name}: has no prompts" in desk.refusal(desk.write(name, content))


@pytest.mark.parametrize(
    ("name", "content", "place"),
    [
        ("p.txt", "a secret\n\nknight\n", "p.txt: line 2"),
        ("p.csv", 'prompt,n\na secret,1\n"",2\n', "p.csv: row 2 (line 3): field 'prompt'"),
        ("p.csv", "prompt,n\na secret,1\n   ,2\n", "p.csv: row 2 (line 3): field 'prompt'"),
        ("p.jsonl", '{"prompt": "a secret"}\n{"prompt": " "}\n', "p.jsonl: line 2: field 'prompt'"),
    ],
)
def test_an_empty_prompt(desk: Desk, name: str, content: str, place: str) -> None:
    error = desk.refusal(desk.write(name, content))
    assert place in error
    assert "secret" not in error


def test_a_prompt_of_nothing_that_can_be_seen(desk: Desk) -> None:
    assert "prompt 2: empty" in desk.refusal(desk.write("p.txt", "knight\n\u200b\u200d\n"))


@pytest.mark.parametrize(
    ("name", "content", "place"),
    [
        ("p.csv", "prompt\nknight\nNaN\n", "p.csv: row 2 (line 3): field 'prompt' is NaN"),
        ("p.jsonl", '{"prompt": "knight"}\n{"prompt": NaN}\n', "p.jsonl: line 2: field 'prompt' is NaN"),
        ("p.jsonl", '{"prompt": null}\n', "p.jsonl: line 1: field 'prompt' is null"),
        ("p.jsonl", '{"prompt": 5}\n', "p.jsonl: line 1: field 'prompt' is a number, not text"),
    ],
)
def test_a_prompt_that_is_not_text(desk: Desk, name: str, content: str, place: str) -> None:
    assert place in desk.refusal(desk.write(name, content))


def test_a_missing_value_in_a_parquet_file(desk: Desk) -> None:
    path = desk.folder / "p.parquet"
    pq.write_table(pa.table({"prompt": ["knight", None]}), path)
    assert "p.parquet: row 2: field 'prompt' is null" in desk.refusal(path)


@pytest.mark.parametrize("name", ["p.csv", "p.jsonl", "p.parquet"])
def test_a_missing_column(desk: Desk, name: str) -> None:
    path = write_prompts(desk.folder / name, PROMPTS, column="caption")
    error = desk.refusal(path)
    assert "has no column 'prompt'; its columns are: 'id', 'caption'" in error


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
@pytest.mark.parametrize("name", ["p.txt", "p.csv", "p.jsonl"])
def test_a_wrong_encoding(desk: Desk, name: str, encoding: str) -> None:
    content = {"p.txt": "café", "p.csv": "prompt\ncafé\n", "p.jsonl": '{"prompt": "café"}\n'}[name]
    error = desk.refusal(desk.write(name, content.encode(encoding)))
    assert f"{name}: line " in error
    assert "UTF-8" in error


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [("p.txt", "knight\n", "\n"), ("p.csv", "prompt\nknight\n", "\n"), ("p.jsonl", '{"prompt": "', '"}\n')],
)
def test_a_line_of_ten_megabytes(desk: Desk, name: str, before: str, after: str) -> None:
    error = desk.refusal(desk.write(name, before + "x" * TEN_MEGABYTES + after))
    assert f"{name}: " in error
    assert "longer than" in error
    assert len(error) < 500


@pytest.mark.parametrize("name", ["p.doc", "p", "p.doc.gz", "p.gz", "p.csv.bz2"])
def test_an_unknown_format(desk: Desk, name: str) -> None:
    assert "its suffix is none of .txt, .csv, .tsv, .jsonl, .parquet" in desk.refusal(desk.write(name, "knight\n"))


def test_a_file_that_is_not_there(desk: Desk) -> None:
    assert "absent.txt: does not exist" in desk.refusal(desk.folder / "absent.txt")


# --- concepts and thresholds


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("c.txt", "bomb\nknife\nBomb\n", "c.txt: line 3: the concept repeats that of line 1"),
        ("c.json", '["bomb", "knife", " bomb"]', "c.json: item 3: the concept repeats that of item 1"),
        ("c.txt", "knife  fight\nknife fight\n", "already"),
        ("c.txt", "bomb\n\nknife\n", "c.txt: line 2"),
        ("c.json", '["bomb", ""]', "c.json: item 2: the concept is empty"),
        ("c.txt", "bomb\n\u200b\n", "empty"),
        ("c.txt", "", "c.txt: has no concepts"),
        ("c.json", "[]", "c.json: has no concepts"),
        ("c.json", "bomb", "c.json: is not valid JSON"),
        ("c.txt", b"caf\xe9\n", "c.txt: line 1: is not UTF-8"),
        ("c.txt", "dog " * 100, "longer than the encoder's window"),
    ],
)
def test_concepts_that_cannot_be_used(desk: Desk, name: str, content: str | bytes, fault: str) -> None:
    path = write_prompts(desk.folder / "p.txt", PROMPTS)
    assert fault in desk.refusal(path, "--concepts", desk.write(name, content))


@pytest.mark.parametrize("threshold", ["high", "", "nan", "inf", "3,5"])
def test_a_threshold_that_is_no_number(desk: Desk, threshold: str) -> None:
    path = write_prompts(desk.folder / "p.txt", PROMPTS)
    assert "--threshold" in desk.refusal(path, "--threshold", threshold)


# --- outputs


def test_an_output_folder_that_does_not_exist(desk: Desk) -> None:
    path = write_prompts(desk.folder / "p.txt", PROMPTS)
    error = desk.refusal(path, output=desk.folder / "absent" / "verdicts.csv")
    assert f"the folder {desk.folder / 'absent'} does not exist" in error


def test_an_output_of_unknown_format(desk: Desk) -> None:
    path = write_prompts(desk.folder / "p.txt", PROMPTS)
    error = desk.refusal(path, output=desk.folder / "verdicts.txt")
    assert "verdicts.txt: its suffix is none of .csv, .jsonl, .parquet" in error


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_disk_that_fills(desk: Desk, suffix: str) -> None:
    path = write_prompts(desk.folder / "p.txt", [f"knight number {n}" for n in range(1_200)])
    output = desk.folder / f"new{suffix}"
    with files_limited_to(2_000):
        error = desk.refusal(path, output=output)
    assert f"new{suffix}: can't be written: " in error
    assert "File too large" in error
    with files_limited_to(2_000):
        desk.refusal(path)


def test_a_disk_that_fills_while_weights_are_written(tmp_path: Path) -> None:
    folder = save_tiny_weights(tmp_path / "weights", "minilm-l6")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    mapping = random_mapping(seed=1)
    with (
        files_limited_to(2_000),
        pytest.raises(DataError, match=r"model\.safetensors: can't be written: File too large"),
    ):
        save_weights(folder, mapping, WeightsConfig("minilm-l6", mapping.shape, 1.0), CONCEPTS, "")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    load_weights(folder)


def test_a_disk_that_fills_while_a_bank_is_saved(tiny_guard: LatentGuard, tmp_path: Path) -> None:
    path = tmp_path / "bank.safetensors"
    tiny_guard.concepts.save(path)
    before = path.read_bytes()
    tiny_guard.concepts.extend([f"new concept {n}" for n in range(20)])
    with files_limited_to(1_500), pytest.raises(DataError, match=r"bank\.safetensors: can't be written"):
        tiny_guard.concepts.save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    loaded = ConceptBank.load(path, tiny_guard.encoder, tiny_guard.mapping)
    assert loaded.names == [concept.name for concept in CONCEPTS]


def test_a_disk_that_fills_while_a_picture_is_drawn(tiny_guard: LatentGuard, tmp_path: Path) -> None:
    scores = tiny_guard.score(PROMPTS)
    with files_limited_to(1_000), pytest.raises(DataError, match=r"picture\.png: can't be written"):
        plot_score_histogram("set", scores, None, 3.5, tmp_path / "picture.png")
    assert list(tmp_path.iterdir()) == []


# --- weights


@pytest.mark.parametrize("kept", [0, 1_000, -1])
def test_a_truncated_weights_file(desk: Desk, kept: int) -> None:
    model = Path(shutil.copytree(desk.model, desk.folder / "model"))
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:kept])
    path = write_prompts(desk.folder / "p.txt", PROMPTS)
    assert "model.safetensors: damaged or truncated" in desk.refusal(path, "--model", model)


def test_weights_for_another_encoder(desk: Desk) -> None:
    model = Path(shutil.copytree(desk.model, desk.folder / "model"))
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"encoder": "minilm-l6"}))
    path = write_prompts(desk.folder / "p.txt", PROMPTS)
    error = desk.refusal(path, "--model", model)
    assert "takes states of width 32, the encoder minilm-l6 gives 384" in error


def test_weights_that_are_nowhere(desk: Desk) -> None:
    path = write_prompts(desk.folder / "p.txt", PROMPTS)
    assert "absent: no such weights" in desk.refusal(path, "--model", "absent")


# --- Ctrl-C


def test_an_interruption_halfway(embedded_weights: Path, tmp_path: Path) -> None:
    path = write_prompts(tmp_path / "p.txt", [f"knight number {n} with sword and shield" for n in range(100_000)])
    output = tmp_path / "verdicts.csv"
    output.write_text(OLD)
    arguments = command("--file_path", path, "--output", output, "--model", embedded_weights)
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not any(p.stat().st_size for p in tmp_path.glob(".tmp-*")):
            time.sleep(0.05)
        assert process.poll() is None, "it ended before it could be interrupted"
        process.send_signal(signal.SIGINT)
        printed, error = process.communicate(timeout=60)
    assert (process.returncode, printed) == (130, "")
    assert error == "inference.py: interrupted; nothing was left half-written\n"
    assert output.read_text() == OLD
    assert sorted(p.name for p in tmp_path.iterdir()) == ["p.txt", "verdicts.csv"]
