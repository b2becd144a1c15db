"""Running the command line as a user does: in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def command(*arguments: str | Path) -> list[str]:
    """`python inference.py ...`, from the checkout."""
    return [sys.executable, str(ROOT / "inference.py"), *map(str, arguments)]


def environment(**changes: str) -> dict[str, str]:
    return os.environ | changes


def run(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs `python inference.py ...` to its end."""
    defaults: dict[str, Any] = {"capture_output": True, "text": True, "encoding": "utf-8", "timeout": 120}
    return subprocess.run(command(*arguments), **defaults | options)
