"""The README's snippet and the examples run, offline."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pipelines import sd

from latentguard import LatentGuard

ROOT = Path(__file__).parents[2]


def test_the_readmes_snippet_runs(
    default_guard: LatentGuard, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("### In a diffusers pipeline")[1]
    snippet = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert snippet is not None
    monkeypatch.setattr(LatentGuard, "from_pretrained", lambda: default_guard)
    named: dict[str, Any] = {"pipe": sd()}
    exec(snippet[1], named)
    assert float(capsys.readouterr().out) == pytest.approx(named["output"].verdicts[0].score)
    harmful = snippet[1].replace("two fencing athletes in a bright hall", "a soldier holding a severed head")
    named = {"pipe": sd()}
    exec(harmful, named)
    assert "severed head" in capsys.readouterr().out
    assert "output" not in named


@pytest.mark.parametrize(("example", "picture"), [("guarded_sd.py", "0.png"), ("guarded_sdxl.py", "picture.png")])
def test_an_example_runs_offline(example: str, picture: str, tmp_path: Path) -> None:
    output = tmp_path if example == "guarded_sd.py" else tmp_path / picture
    command = [sys.executable, str(ROOT / "examples" / example), "--tiny", "--steps", "2", "--output", str(output)]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "HF_HUB_OFFLINE": "1"}, check=False
    )
    assert done.returncode == 0, done.stderr
    assert Image.open(tmp_path / picture).size == (64, 64)
    if example == "guarded_sd.py":
        assert [line.split()[0] for line in done.stdout.splitlines()] == ["allowed", "BLOCKED"]
        assert Image.open(tmp_path / "1.png").getextrema() == ((0, 0),) * 3


def test_the_guide_lists_each_option() -> None:
    import inspect

    from latentguard.integrations.diffusers import guard_pipeline

    guide = (ROOT / "docs" / "diffusers.md").read_text(encoding="utf-8")
    options = [name for name in inspect.signature(guard_pipeline).parameters if name not in ("pipe", "guard")]
    assert [name for name in options if f"`{name}" not in guide] == []
    assert importlib.util.find_spec("latentguard.integrations.diffusers") is not None
