"""`python -m privacy passkey`, run as its users run it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import transformers
from passkey_models import LINES, PASSKEY

from privacy import cli

Folders = Callable[[str], Path]


class Result(NamedTuple):
    status: int
    out: str
    err: str


class Commands:
    """Runs commands in this process."""

    def __init__(self, capture: pytest.CaptureFixture[str]) -> None:
        self._capture = capture

    def __call__(self, *arguments: str | Path) -> Result:
        self._capture.readouterr()
        try:
            status = cli.main(["passkey", *map(str, arguments)])
        except SystemExit as error:
            status = int(error.code or 0)
        return Result(status, *self._capture.readouterr())

    def fine(self, *arguments: str | Path) -> str:
        result = self(*arguments)
        assert (result.status, result.err) == (0, "")
        return result.out

    def refused(self, *arguments: str | Path) -> str:
        result = self(*arguments)
        assert (result.status, result.out) == (2, "")
        assert result.err.count("\n") == 1
        assert PASSKEY not in result.err
        return result.err


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PRIVACY_PASSKEY", raising=False)
    Path("passkey.txt").write_text(PASSKEY + "\n")
    Path("passkey.txt").chmod(0o600)
    Path("texts.txt").write_text("\n".join([*LINES[:2], "", "warm bread"]) + "\n")
    return Commands(capsys)


@pytest.fixture
def places(folder_of: Folders, converted_of: Folders) -> tuple[str, ...]:
    return ("--tokenizer", str(folder_of("bert")), "--converted", str(converted_of("bert")))


KEY = ("--passkey-file", "passkey.txt")


def test_a_model_is_converted_checked_and_used(run: Commands, folder_of: Folders) -> None:
    plain = folder_of("bert")
    said = run.fine("convert", plain, "--output", "server", "--transform", "none", "--kdf", "scrypt", *KEY)
    assert said == "server: 199 tokens encrypted, transform none\n"
    assert run.fine("check", "server") == "server: whole: 199 encrypted tokens, transform none\n"
    places = ("--tokenizer", plain, "--converted", "server")
    run.fine("encrypt", "texts.txt", "--output", "encrypted.txt", *places, *KEY)
    encrypted = Path("encrypted.txt").read_text()
    assert encrypted.count("\n") == 4
    assert not any(word in encrypted for line in LINES for word in line.split())
    # The server has transformers and the folder, and no code comes with that.
    assert not [path for path in Path("server").iterdir() if path.suffix not in (".json", ".safetensors")]
    assert "auto_map" not in Path("server/config.json").read_text()
    server = transformers.AutoTokenizer.from_pretrained("server")
    known = transformers.AutoTokenizer.from_pretrained(plain)
    lengths = [len(server(line)["input_ids"]) for line in encrypted.splitlines()]
    assert lengths == [len(known(line)["input_ids"]) for line in Path("texts.txt").read_text().splitlines()]
    decrypted = run.fine("decrypt", "encrypted.txt", *places, *KEY)
    assert decrypted.splitlines() == [*LINES[:2], "", "warm bread"]
    assert json.loads(Path("server/passkey.json").read_text())["stretching"]["kdf"] == "scrypt"


def test_the_passkey_comes_from_the_environment_too(
    run: Commands, places: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    from_file = run.fine("encrypt", "texts.txt", *places, *KEY)
    monkeypatch.setenv("PRIVACY_PASSKEY", PASSKEY)
    assert run.fine("encrypt", "texts.txt", *places) == from_file


def test_a_tied_head_under_a_transform_brings_a_warning(run: Commands, folder_of: Folders) -> None:
    result = run("convert", folder_of("bert-lm"), "--output", "server", "--kdf", "scrypt", *KEY)
    assert result.status == 0
    assert "its output rows are the plain embeddings, in encrypted order" in result.err
    assert result.err.count("\n") == 1


def test_there_is_no_option_that_takes_the_passkey_itself(run: Commands, folder_of: Folders) -> None:
    said = run.refused("convert", str(folder_of("bert")), "--output", "server", "--passkey", "whatever it is here")
    assert "unrecognized arguments: --passkey" in said


class TestBadInput:
    """One clear line, exit status 2, and nothing half-written."""

    def test_no_passkey(self, run: Commands, folder_of: Folders) -> None:
        said = run.refused("convert", folder_of("bert"), "--output", "server")
        assert "nobody to ask for the passkey; give --passkey-file or set PRIVACY_PASSKEY" in said
        assert not Path("server").exists()

    def test_a_short_passkey(self, run: Commands, folder_of: Folders) -> None:
        Path("passkey.txt").write_text("secret")
        said = run.refused("convert", folder_of("bert"), "--output", "server", *KEY)
        assert "passkey.txt: the passkey has 6 characters; at least 16 are needed" in said

    def test_a_passkey_file_that_others_may_read(self, run: Commands, folder_of: Folders) -> None:
        Path("passkey.txt").chmod(0o640)
        said = run.refused("convert", folder_of("bert"), "--output", "server", *KEY)
        assert "other users have access to it" in said

    def test_a_wrong_passkey(self, run: Commands, places: tuple[str, ...]) -> None:
        Path("passkey.txt").write_text("another passkey altogether")
        for command in ("encrypt", "decrypt"):
            assert "the passkey is wrong" in run.refused(command, "texts.txt", *places, *KEY)

    def test_a_converted_model(self, run: Commands, converted_of: Folders) -> None:
        said = run.refused("convert", converted_of("bert"), "--output", "server", *KEY)
        assert "is a converted model already" in said

    def test_a_target_that_is_there(self, run: Commands, folder_of: Folders) -> None:
        assert "exists already" in run.refused("convert", folder_of("bert"), "--output", "passkey.txt", *KEY)

    def test_no_model(self, run: Commands) -> None:
        Path("empty").mkdir()
        assert "empty: its tokenizer can't be read" in run.refused("convert", "empty", "--output", "server", *KEY)

    def test_a_tokenizer_of_another_model(self, run: Commands, folder_of: Folders, converted_of: Folders) -> None:
        places = ("--tokenizer", folder_of("roberta"), "--converted", converted_of("bert"))
        said = run.refused("encrypt", "texts.txt", *places, *KEY)
        assert "the tokenizer is not the one of the model that was converted" in said

    def test_a_half_converted_folder(self, run: Commands, folder_of: Folders) -> None:
        Path("half").mkdir()
        assert "half: has no passkey.json, so it is no whole converted model" in run.refused("check", "half")
        places = ("--tokenizer", folder_of("bert"), "--converted", "half")
        assert "has no passkey.json" in run.refused("encrypt", "texts.txt", *places, *KEY)

    def test_a_changed_file(self, run: Commands, converted_of: Folders) -> None:
        shutil.copytree(converted_of("bert"), "server")
        Path("server/tokenizer.json").write_text("{}")
        assert "tokenizer.json was changed since the conversion" in run.refused("check", "server")

    def test_an_unknown_token_is_told_by_its_place(self, run: Commands, places: tuple[str, ...]) -> None:
        first = run.fine("encrypt", "texts.txt", *places, *KEY).splitlines()[0]
        Path("damaged.txt").write_text(f"{first}\n{first} 0123\n")
        said = run.refused("decrypt", "damaged.txt", "--output", "plain.txt", *places, *KEY)
        assert f"damaged.txt: line 2: token {len(first.split()) + 1} is not in this vocabulary" in said
        assert not Path("plain.txt").exists()

    def test_a_file_that_cannot_be_read(self, run: Commands, places: tuple[str, ...]) -> None:
        assert "absent.txt: can't be read" in run.refused("encrypt", "absent.txt", *places, *KEY)
        Path("latin.txt").write_bytes("größe".encode("latin-1"))
        assert "latin.txt: is not UTF-8" in run.refused("encrypt", "latin.txt", *places, *KEY)

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            (("--transform", "spiral"), "invalid choice: 'spiral'"),
            (("--transform", "none", "--factor", "3"), "the factor repeats a glide reflection"),
            (("--factor", "0"), "the factor is not a whole number from 1 to 64"),
            (("--noise", "2"), "the noise is not a number from 0 to 1"),
            (("--noise", "much"), "invalid float value"),
            (("--kdf", "md5"), "invalid choice: 'md5'"),
        ],
    )
    def test_bad_options(self, run: Commands, folder_of: Folders, options: tuple[str, ...], said: str) -> None:
        assert said in run.refused("convert", folder_of("bert"), "--output", "server", *options, *KEY)


def test_help_loads_no_model_library() -> None:
    program = "import sys; from privacy.cli import main; main(['--help'])"
    found = subprocess.run([sys.executable, "-X", "importtime", "-c", program], capture_output=True, text=True)
    assert found.returncode == 0
    for name in ("torch", "transformers", "privacy.passkey.keys", "privacy.passkey.vocabulary"):
        assert f" {name}\n" not in found.stderr
    assert "passkey" in found.stdout
