"""Resident memory of the guard, against the published pipeline's, each grown in one and the same fresh process."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.made_up import LAYERS, guard_of, prompts
from benchmarks.reference import PublishedPipeline
from benchmarks.report import Figure
from benchmarks.settings import WANTED_AT, Settings
from latentguard.encoders import load_encoder

_STATM = Path("/proc/self/statm")


def memory(settings: Settings) -> list[Figure]:
    """What loading the guard and screening a batch add to a process that has imported the libraries, in MB."""
    if not _STATM.exists():
        print("memory: left out, since this system has no /proc/self/statm", file=sys.stderr)
        return []
    root = Path(__file__).resolve().parent.parent
    command = [sys.executable, "-m", "benchmarks.memory", settings.to_json()]
    found = json.loads(subprocess.run(command, cwd=root, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return [
        Figure("memory", "guard loaded, 578 concepts", found["loaded"], "MB", found["reference_loaded"]),
        Figure("memory", f"and a batch of {settings.prompts:,} screened", found["used"], "MB", found["reference_used"]),
        Figure(
            "memory",
            "whole process",
            found["process"],
            "MB",
            found["process"] - found["used"] + found["reference_used"],
        ),
    ]


def measure(settings: Settings) -> dict[str, float]:
    """The figures of this process, in MB."""
    for library in ("onnx", "onnxruntime", "transformers.models.clip"):
        importlib.import_module(library)
    torch.set_num_threads(settings.threads)
    start = _resident()
    guard = guard_of(load_encoder(device="cpu", layers=LAYERS, threads=settings.threads), WANTED_AT)
    loaded = _resident()
    guard.check_batch(prompts(settings.prompts))
    used = _resident()
    check = PublishedPipeline(settings.tower).checker(WANTED_AT)
    reference_loaded = _resident()
    check()
    reference_used = _resident()
    return {
        "loaded": loaded - start,
        "used": used - start,
        "process": used,
        "reference_loaded": reference_loaded - used,
        "reference_used": reference_used - used,
    }


def _resident() -> float:
    return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


if __name__ == "__main__":
    print(json.dumps(measure(Settings.from_json(sys.argv[1]))))
