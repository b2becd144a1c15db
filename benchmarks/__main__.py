"""``python -m benchmarks``: run the benchmarks and print a table of each."""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import torch

from benchmarks.bank import bank
from benchmarks.end_to_end import check, check_batch, evidence
from benchmarks.lite import lite, start
from benchmarks.memory import memory
from benchmarks.pipeline import pipeline
from benchmarks.report import Figure, table
from benchmarks.scoring import scoring
from benchmarks.settings import QUICK, Settings
from latentguard.files import atomic_path

BENCHMARKS: dict[str, Callable[[Settings], list[Figure]]] = {
    "scoring": scoring,
    "check": check,
    "evidence": evidence,
    "check_batch": check_batch,
    "bank": bank,
    "memory": memory,
    "pipeline": pipeline,
    "lite": lite,
    "start": start,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmarks asked for; returns the exit status: 1 with --strict if a figure falls short, else 0."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", action="append", choices=BENCHMARKS, help="run this one; may be given several times")
    parser.add_argument("--threads", type=int, default=2, help="threads of PyTorch and ONNX Runtime (default: 2)")
    parser.add_argument("--quick", action="store_true", help="fewer runs and no large bank")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE as well")
    parser.add_argument("--strict", action="store_true", help="exit with status 1 if a figure falls short")
    given = parser.parse_args(arguments)
    if given.threads < 1:
        parser.error("--threads: at least 1")
    settings = replace(QUICK if given.quick else Settings(), threads=given.threads)
    torch.set_num_threads(settings.threads)

    print(_circumstances(settings))
    figures: list[Figure] = []
    for name in given.only or BENCHMARKS:
        print(f"\n{name}\n", flush=True)
        found = BENCHMARKS[name](settings)
        print(table(found), flush=True)
        figures += found
    if given.json is not None:
        described = {"circumstances": _circumstances(settings), "figures": [figure.as_dict() for figure in figures]}
        with atomic_path(given.json) as temporary:
            temporary.write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    return 1 if given.strict and any(figure.missed for figure in figures) else 0


def _circumstances(settings: Settings) -> str:
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "onnxruntime"))
    return f"Python {platform.python_version()}, {libraries}, {settings.threads} threads, {_processor()}"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


if __name__ == "__main__":
    sys.exit(main())
