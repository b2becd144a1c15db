"""The commands, each in a process of its own, and the tool."""

from __future__ import annotations

import base64
import json
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from privacy.encrypted_inference import Client, Server, classifier_tool, shipped_folder
from privacy.encrypted_inference.cli import main
from privacy.encrypted_inference.data import LabelledImages


def run(*arguments: str | Path, status: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "privacy.encrypted_inference", *map(str, arguments)]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert finished.returncode == status, finished.stderr
    return finished


@pytest.fixture
def picture(digits: LabelledImages, tmp_path: Path) -> Path:
    path = tmp_path / "zero.png"
    Image.fromarray((digits.pixels[0] * 255).astype(np.uint8)).save(path)
    return path


def test_encrypt_classify_and_decrypt_run_in_three_processes(picture: Path, tmp_path: Path) -> None:
    client, server = tmp_path / "client", tmp_path / "server"
    client.mkdir()
    server.mkdir()
    secret = client / "secret"
    made = run(
        *("encrypt", picture, picture, "--model", "digits", "--secret", secret),
        *("--keys", server / "keys", "--output", server / "query"),
    )
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert sorted(path.name for path in server.iterdir()) == ["keys", "query"]
    run("classify", server / "query", "--keys", server / "keys", "--model", "digits", "--output", client / "answer")
    shown = run("decrypt", client / "answer", "--secret", secret)
    assert shown.stdout == "0\n0\n"
    assert made.stdout == ""


def test_mistakes_are_one_line_and_status_2(picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nowhere, output = tmp_path / "nowhere", tmp_path / "output"
    for arguments in (
        ["encrypt", picture, "--secret", nowhere, "--output", output],
        ["encrypt", nowhere, "--secret", tmp_path / "s", "--keys", tmp_path / "k", "--output", output],
        ["encrypt", picture, "--secret", tmp_path / "s", "--keys", tmp_path / "k", "--model", "x", "--output", output],
        ["classify", nowhere, "--keys", picture, "--output", output],
        ["classify", picture, "--keys", picture, "--output", output],
        ["decrypt", picture, "--secret", nowhere],
        ["train", "--data", nowhere, "--output", output],
        ["train", "--data", "digits", "--train-on", "5000", "--output", output],
        ["train", "--data", "digits", "--channels", "3", "--output", output],
        ["train", "--data", "digits", "--epochs", "0", "--output", output],
        ["evaluate", "--model", "mnist", "--data", "digits"],
        ["bench", "--runs", "0"],
    ):
        assert main([str(argument) for argument in arguments]) == 2, arguments
        shown = capsys.readouterr()
        assert shown.err.startswith("error: ")
        assert shown.err.count("\n") == 1
        assert shown.out == ""
    assert not output.exists()
    assert not (tmp_path / "s").exists()


def test_a_query_of_other_keys_is_told(picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        arguments = ["encrypt", picture, "--model", "digits", "--secret", tmp_path / name]
        arguments += ["--keys", tmp_path / f"{name}.keys", "--output", tmp_path / f"{name}.query"]
        assert main([str(argument) for argument in arguments]) == 0
    arguments = ["classify", tmp_path / "a.query", "--keys", tmp_path / "b.keys", "--model", "digits"]
    assert main([str(argument) for argument in [*arguments, "--output", tmp_path / "answer"]]) == 2
    assert "no session has its keys" in capsys.readouterr().err


def test_train_and_evaluate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--data", "digits", "--epochs", "8", "--output", str(tmp_path / "mine")]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] > 0.7
    arguments = ["evaluate", "--model", str(tmp_path / "mine"), "--skip", "1500", "--encrypted", "5"]
    assert main(arguments) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["images"] == 297
    assert figures["encrypted"] == 5
    assert figures["largest_logit_error"] < 1


def test_the_tool_classifies_and_tells_errors(client: Client, keys: bytes, query: bytes) -> None:
    with Server({"digits": shipped_folder("digits")}) as server:
        tool = classifier_tool(server)
        arguments = {"query": base64.b64encode(query).decode()}
        assert tool.call(arguments)["error"] == "SessionExpiredError"
        answer = tool.call(arguments | {"keys": base64.b64encode(keys).decode()})
        assert client.decrypt(base64.b64decode(answer["answer"])).labels == ("0",)
        assert "answer" in tool.call(arguments)
        for wrong in ({}, {"query": 1}, {"query": "not base64!"}, {"query": "", "more": 1}):
            assert tool.call(wrong)["error"] == "WireError"
    json.dumps(tool.parameters)
    assert tool.parameters["required"] == ["query"]
