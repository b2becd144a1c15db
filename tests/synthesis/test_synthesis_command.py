"""`latentguard synthesize` and `latentguard attack`, from the options to the files."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from chat_server import KEY, Reply, chat_server, says
from cli_runner import ROOT

from latentguard.cli import main
from latentguard.shipped import shipped_path

LEXICON = shipped_path("datasets") / "grammar"
needs_lexicon = pytest.mark.skipif(not LEXICON.is_dir(), reason="the lexicon is not there")


@pytest.fixture
def concepts(tmp_path: Path) -> Path:
    path = tmp_path / "concepts.txt"
    path.write_text("knife attack\ngun smuggling\n")
    return path


def obliging(body: dict[str, Any], number: int) -> Reply:
    text = body["messages"][-1]["content"]
    if "safe twin" in text:
        count = len(json.loads(text.split("Prompts: ")[1].splitlines()[0]))
        return says({"prompts": [f"a calm lake {number} {place}" for place in range(count)]})
    return says({"prompts": [f"the gun smuggling {number} of crates"], "synonyms": ["illegal arms trade"]})


@needs_lexicon
def test_a_data_set_and_its_attacks(concepts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out.json"
    assert main(["synthesize", "--concepts", str(concepts), "--output", str(output), "--per-concept", "5"]) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines()[0] == "10 pairs of 2 concepts, 0 of them without a twin"
    assert printed.err == ""
    attack = ["attack", "--input", str(output), "--output", str(tmp_path / "a.csv"), "--kind"]
    assert main([*attack, "synonym", "--replacements", str(output)]) == 0
    assert main([*attack, "halves"]) == 0
    with open(tmp_path / "a.csv", newline="", encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == 20


def test_an_endpoint_is_asked_with_the_key_of_the_environment(
    concepts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LATENTGUARD_SYNTHESIS_API_KEY", KEY)
    output = tmp_path / "out.json"
    with chat_server(obliging) as server:
        options = ["--backend", "openai", "--base-url", server.url, "--model", "m", "--per-concept", "1"]
        assert main(["synthesize", "--concepts", str(concepts), "--output", str(output), *options]) == 0
        assert {headers["Authorization"] for headers in server.headers} == {f"Bearer {KEY}"}
    row = json.loads(output.read_text())["train"][0]
    assert row["provenance"] == {
        "backend": "openai",
        "model": "m",
        "version": "1",
        "seed": 0,
        "template": "unsafe+twins/1",
    }
    assert KEY not in output.read_text() + capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--backend", "openai"], "no endpoint: give --base-url"),
        (["--backend", "transformers"], "no model: give --model"),
        (["--per-concept", "0"], "at least 1"),
        (["--adversarial", "1", "--encoder", "open_clip:ViT-B-32:"], "gradients"),
    ],
)
def test_bad_options_end_with_one_line(
    concepts: Path, tmp_path: Path, options: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["synthesize", "--concepts", str(concepts), "--output", str(tmp_path / "o.json"), *options]) == 2
    error = capsys.readouterr().err
    assert complaint in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "o.json").exists()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--kind", "synonym"], "needs --replacements"),
        (["--kind", "order", "--replacements", "x.json"], "takes no --replacements"),
    ],
)
def test_attacks_need_replacements_or_take_none(
    tmp_path: Path, options: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.csv").write_text("prompt,concept,unsafe\na gun,gun,1\n")
    assert main(["attack", "--input", str(tmp_path / "a.csv"), "--output", str(tmp_path / "b.csv"), *options]) == 2
    assert complaint in capsys.readouterr().err


def test_nothing_left_to_write_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.csv").write_text("prompt,concept,unsafe\na pistol,gun,1\n")
    (tmp_path / "r.json").write_text('{"gun": "bang"}')
    files = ["--input", str(tmp_path / "a.csv"), "--output", str(tmp_path / "b.csv")]
    assert main(["attack", *files, "--kind", "adversarial", "--replacements", str(tmp_path / "r.json")]) == 2
    assert "1 unsafe prompts left out" in capsys.readouterr().err
    assert not (tmp_path / "b.csv").exists()


def test_a_run_that_is_killed_goes_on(tmp_path: Path) -> None:
    concepts, output = tmp_path / "c.txt", tmp_path / "out.json"
    concepts.write_text("".join(f"vice {letter}\n" for letter in "abcdefgh"))
    command = [sys.executable, "-m", "latentguard", "synthesize", "--concepts", str(concepts), "--output", str(output)]
    options = ["--backend", "openai", "--model", "m", "--per-concept", "1", "--synonyms", "0", "--parallel", "1"]

    def slow(body: dict[str, Any], number: int) -> Reply:
        reply = obliging(body, number)
        reply.delay = 0.1
        return reply

    with chat_server(slow) as server:
        options += ["--base-url", server.url]
        process = subprocess.Popen([*command, *options], cwd=ROOT, env=os.environ, stderr=subprocess.PIPE)
        journal = tmp_path / "out.json.journal.jsonl"
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not (journal.exists() and journal.read_bytes().count(b"\n") >= 3):
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
        assert not output.exists()
        sent = len(server.requests)
        again = subprocess.run([*command, *options, "--resume"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert again.returncode == 0, again.stderr
    assert "concepts were there from the run before" in again.stdout
    assert again.stderr == ""
    assert len(server.requests) < sent + 16
    assert len(json.loads(output.read_text())["train"]) == 8
    assert not journal.exists()
