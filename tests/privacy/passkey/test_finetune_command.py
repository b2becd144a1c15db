"""`passkey finetune` as a user runs it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import transformers
from passkey_models import PASSKEY

from privacy.cli import main

ROWS = [{"sentence": "quiet bread", "label": "bad"}, {"sentence": "warm bread", "label": "good"}] * 8


@pytest.fixture
def options(folder_of: Callable[[str], Path], tmp_path: Path) -> dict[str, str]:
    """Options of a run that would work; a test changes one of them."""
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)), encoding="utf-8")
    (tmp_path / "key").write_text(PASSKEY + "\n", encoding="utf-8")
    (tmp_path / "key").chmod(0o600)
    return {
        "--task": "classification",
        "--model": str(folder_of("bert")),
        "--train": str(tmp_path / "rows.jsonl"),
        "--eval": str(tmp_path / "rows.jsonl"),
        "--passkey-file": str(tmp_path / "key"),
        "--epochs": "1",
        "--output": str(tmp_path / "out"),
    }


def run(options: dict[str, str], *flags: str) -> int:
    return main(["passkey", "finetune", *flags, *(part for option in options.items() for part in option)])


@pytest.fixture
def talkative_transformers() -> Iterator[None]:
    """transformers as a user has it, and not silenced for the tests."""
    logging = transformers.utils.logging
    verbosity = logging.get_verbosity()
    logging.set_verbosity_warning()
    logging.enable_progress_bar()
    yield
    logging.set_verbosity(verbosity)
    logging.disable_progress_bar()


@pytest.mark.usefixtures("talkative_transformers")
def test_one_table_is_all_that_is_printed_off_a_terminal(
    options: dict[str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(options, "--compare") == 0
    out, err = capfd.readouterr()
    assert [line.split("|")[3].strip() for line in out.splitlines() if "bert" in line] == ["none", "glide ×1"]
    assert len(out.splitlines()) == 4
    assert err == ""


def test_the_passkey_comes_from_the_environment_as_well(
    options: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PRIVACY_PASSKEY", PASSKEY)
    del options["--passkey-file"]
    assert run(options) == 0
    assert PASSKEY.encode() not in b"".join(path.read_bytes() for path in Path(options["--output"]).rglob("*.*"))


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert PASSKEY not in err
    return err


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "has no rows"),
        ('{"sentence": "quiet bread", "label": "ugly"}\n', "row 1: field 'label': has a class that the training data"),
        ('{"text": "quiet bread", "label": "good"}\n', "has no column 'sentence', only text, label; name yours with"),
    ],
    ids=["empty", "unknown label", "missing column"],
)
def test_data_that_cannot_be_used_is_one_line(
    content: str, said: str, options: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other.jsonl").write_text(content, encoding="utf-8")
    assert run({**options, "--eval": str(tmp_path / "other.jsonl")}, "--compare") == 2
    err = one_line(capsys)
    assert said in err
    assert "other.jsonl" in err
    assert not (tmp_path / "out").exists()


def test_a_wrong_key_is_one_line(options: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    convert = ["passkey", "convert", options["--model"], "--passkey-file", options["--passkey-file"], "--kdf", "scrypt"]
    assert main([*convert, "--output", str(tmp_path / "converted")]) == 0
    capsys.readouterr()
    (tmp_path / "key").write_text("somebody else's passkey", encoding="utf-8")
    assert run({**options, "--converted": str(tmp_path / "converted")}) == 2
    assert "the passkey is wrong" in one_line(capsys)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"--model": "nowhere"}, "nowhere: its tokenizer can't be read"),
        ({"--train": "nowhere.csv"}, "nowhere.csv: does not exist"),
        ({"--columns": "text"}, "classification takes 2 columns: sentence, label"),
        ({"--task": "translation", "--columns": "sentence"}, "translation takes 2 columns: source, target"),
        ({"--epochs": "0"}, "the number of epochs is not above 0"),
        ({"--factor": "2", "--transform": "none"}, "the transform none has none"),
    ],
)
def test_options_that_cannot_be_used_are_one_line(
    changes: dict[str, str], said: str, options: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run({**options, **changes}) == 2
    assert said in one_line(capsys)


def test_what_is_no_number_is_one_line(options: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        run({**options, "--learning-rate": "fast"})
    assert "--learning-rate" in one_line(capsys)
