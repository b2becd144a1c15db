"""The commands of blind screening, training over a converted encoder, and the example that shows all of it."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import pytest
from models import PROMPTS

from examples import blind_screening
from latentguard import LatentGuard
from latentguard.cli import main
from latentguard.encoders.huggingface import HuggingFaceEncoder
from latentguard.integrations.passkey import BlindClient, BlindGuard, PasskeyEncoder
from privacy.passkey import PassKey, convert


@pytest.fixture
def passkey_file(tmp_path: Path, passkey: PassKey) -> Path:
    path = tmp_path / "passkey.txt"
    path.write_bytes(passkey.secret + b"\n")
    path.chmod(0o600)
    return path


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    path = tmp_path / "labelled.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["prompt", "unsafe"])
        writer.writerows([[prompt, int("naked" in prompt or "bomb" in prompt)] for prompt in PROMPTS])
    return path


class TestBlind:
    def test_it_writes_a_folder_that_scores_alike(
        self, headed_weights: Path, plain_guard: LatentGuard, tmp_path: Path, passkey_file: Path, passkey: PassKey
    ) -> None:
        folder = tmp_path / "blind"
        options = ["--weights", str(headed_weights), "--passkey-file", str(passkey_file), "--output", str(folder)]
        assert main(["blind", *options]) == 0
        client = BlindClient(folder, passkey, original=plain_guard.encoder.name)
        verdict = BlindGuard.from_pretrained(folder).check(client.encrypt(PROMPTS[4]))
        assert verdict.score == pytest.approx(plain_guard.check(PROMPTS[4]).score, abs=1e-5)

    def test_the_passkey_may_come_from_the_environment(
        self, headed_weights: Path, tmp_path: Path, passkey: PassKey, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PRIVACY_PASSKEY", passkey.secret.decode())
        assert main(["blind", "--weights", str(headed_weights), "--output", str(tmp_path / "blind"), "--no-words"]) == 0
        assert json.loads((tmp_path / "blind" / "blind.json").read_text())["limits"]["words"] is False

    @pytest.mark.parametrize(
        ("options", "problem"),
        [
            (["--passkey-file", "nowhere.txt"], "nowhere.txt"),
            (["--passkey-file", "short.txt"], "at least 16"),
            (["--weights", "nothing-of-this-name"], "no such weights"),
            (["--converted", "."], "passkey.json"),
            (["--original", "hf:other"], "not to hf:other"),
        ],
    )
    def test_bad_input_is_one_line_and_status_2(
        self,
        headed_weights: Path,
        tmp_path: Path,
        passkey_file: Path,
        options: list[str],
        problem: str,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "short.txt").write_text("short")
        (tmp_path / "short.txt").chmod(0o600)
        given = ["--weights", str(headed_weights), "--passkey-file", str(passkey_file), *options]
        assert main(["blind", "--output", "blind", *given]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert problem in error
        assert not (tmp_path / "blind").exists()


class TestBlindEvaluate:
    def test_it_puts_both_guards_side_by_side(
        self,
        blind_folder: Path,
        headed_weights: Path,
        labelled: Path,
        passkey_file: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        options = ["--plain", str(headed_weights), "--passkey-file", str(passkey_file), "--data", str(labelled)]
        assert main(["blind-evaluate", str(blind_folder), *options]) == 0
        head, _, row = capsys.readouterr().out.splitlines()
        cells = dict(zip(head.split("|"), row.split("|"), strict=True))
        assert cells[" file "].strip() == "labelled"
        assert cells[" AUC, plain "] == cells[" AUC, blind "] != ""
        assert cells[" difference "].strip() == "+0.0000"
        assert cells[" decided alike "].strip() == "100.0%"

    def test_another_passkey_is_refused(
        self,
        blind_folder: Path,
        headed_weights: Path,
        labelled: Path,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        other = tmp_path / "other.txt"
        other.write_text("quite another passkey")
        other.chmod(0o600)
        options = ["--plain", str(headed_weights), "--passkey-file", str(other), "--data", str(labelled)]
        assert main(["blind-evaluate", str(blind_folder), *options]) == 2
        assert "passkey is wrong" in capsys.readouterr().err


def test_a_layer_trained_over_a_converted_encoder_screens_blindly(
    tiny_encoder: HuggingFaceEncoder, tiny_folder: Path, tmp_path: Path, passkey_file: Path, passkey: PassKey
) -> None:
    names, places = ("knife", "gun", "bomb", "blood", "war", "naked", "sword"), ("table", "street", "river", "city")
    pairs = [(name, f"a {name} in the {place}", f"a cat in the {place}") for name in names for place in places]
    with (tmp_path / "pairs.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("concept", "unsafe_prompt", "safe_prompt"), *pairs])
    (tmp_path / "bank.txt").write_text("\n".join(names))
    converted, weights, folder = tmp_path / "converted", tmp_path / "weights", tmp_path / "blind"
    convert(tiny_folder, converted, passkey, transform="glide")
    recipe = ("--epochs", "1", "--held-out", "0.3", "--concepts-per-batch", "4", "--false-positive-rate", "0.2")
    trained = ("--encoder", tiny_encoder.name, "--converted", str(converted), "--passkey-file", str(passkey_file))
    files = ("--data", str(tmp_path / "pairs.csv"), "--bank", str(tmp_path / "bank.txt"), "--output", str(weights))
    harmless = tmp_path / "harmless.txt"
    harmless.write_text("\n".join(f"a {what} on the {place}" for what in ("boat", "dog", "photo") for place in places))
    cache = ("--cache", str(tmp_path / "cache"))
    assert main(["train", *files, *recipe, *trained, *cache, "--negatives", str(harmless), "--device", "cpu"]) == 0
    made = ("--weights", str(weights), "--converted", str(converted), "--original", tiny_encoder.name)
    assert main(["blind", *made, "--passkey-file", str(passkey_file), "--output", str(folder)]) == 0

    reading = LatentGuard.from_pretrained(weights, encoder=PasskeyEncoder(tiny_encoder, converted, passkey))
    client = BlindClient(folder, passkey, original=tiny_encoder.name)
    hidden = BlindGuard.from_pretrained(folder).check_batch(client.encrypt(prompt) for prompt in PROMPTS)
    expected = [verdict.score for verdict in reading.check_batch(PROMPTS)]
    assert [verdict.score for verdict in hidden] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("command", ["blind", "blind-evaluate"])
def test_the_commands_have_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    assert "--passkey-file" in capsys.readouterr().out


# Python reads a module of this name first of all, in the server's process too.
WITHOUT_THE_KEY_HOLDERS_HALF = """
import sys
if "--serve" in sys.orig_argv:
    sys.modules["privacy"] = sys.modules["cryptography"] = None
"""


def test_the_example_refuses_the_unsafe_prompt_unread_by_a_server_without_any_means_to_read_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(WITHOUT_THE_KEY_HOLDERS_HALF)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    assert blind_screening.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    unsafe, harmless = (lines[i : i + 4] for i in (0, 5))
    assert unsafe[3] == "the client reads: block, for 'beheading'"
    assert harmless[3] == "the client reads: allow"
    for prompt, (_, seen, said, _) in zip(blind_screening.PROMPTS, (unsafe, harmless), strict=True):
        words = [word.strip(",") for word in prompt.split() if len(word) > 3]
        assert not [word for word in words if word in seen + said]
