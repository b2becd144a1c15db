"""How much memory a process needs beside its libraries, by batch size: for a guard, or for the published calculation.

The most that a process ever held is kept by the system and never falls, so each bank gets a process of its own, which
takes its batches from the smallest to the largest.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch

from benchmarks.made_up import LAYERS, guard_of, prompts
from benchmarks.reference import PublishedPipeline, published_scores_at_once
from benchmarks.settings import Settings
from latentguard.encoders import load_encoder

Side = Literal["ours", "published"]
Peaks = dict[int, float]
"""By the number of prompts in a call, 0 for none: the most that the process has held until then, in MB."""

_STATUS = Path("/proc/self/status")


def measurable(device: str) -> bool:
    """Whether this system tells a process what it held at most; a GPU always does."""
    return torch.device(device).type == "cuda" or _STATUS.exists()


def peaks(side: Side, concepts: int, settings: Settings) -> Peaks:
    """The peaks of a fresh process with a bank of so many concepts."""
    root = Path(__file__).resolve().parent.parent
    command = [sys.executable, "-m", "benchmarks.cost_memory", side, str(concepts), settings.to_json()]
    found = json.loads(subprocess.run(command, cwd=root, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return {int(size): megabytes for size, megabytes in found.items()}


def measure(side: Side, concepts: int, settings: Settings) -> Peaks:
    """The peaks of this process, which has measured nothing before."""
    for library in ("onnx", "onnxruntime", "transformers.models.clip"):
        importlib.import_module(library)
    torch.set_num_threads(settings.threads)
    start = _held_at_most(settings.device)
    run, sizes = (_ours if side == "ours" else _published)(concepts, settings)
    found = {0: _held_at_most(settings.device) - start}
    for size in sizes:
        run(size)
        found[size] = _held_at_most(settings.device) - start
    return found


def _ours(concepts: int, settings: Settings) -> tuple[Callable[[int], object], tuple[int, ...]]:
    guard = guard_of(load_encoder(device=settings.device, layers=LAYERS, threads=settings.threads), concepts)
    batch = prompts(settings.batches[-1])
    return lambda size: guard.check_batch(batch[:size]), settings.batches


def _published(concepts: int, settings: Settings) -> tuple[Callable[[int], object], tuple[int, ...]]:
    pipeline = PublishedPipeline(settings.tower, settings.device)
    bank = pipeline.concepts(concepts)
    fitting = tuple(size for size in settings.batches if size * concepts <= settings.pairs)
    return lambda size: published_scores_at_once(pipeline.mapping, bank, pipeline.states(size)), fitting


def _held_at_most(device: str) -> float:
    """In MB: the process's largest resident size so far, or on a GPU what tensors took at most."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    # Not getrusage: its peak starts from the process that started this one.
    lines = _STATUS.read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e6


if __name__ == "__main__":
    chosen: Side = "ours" if sys.argv[1] == "ours" else "published"
    print(json.dumps(measure(chosen, int(sys.argv[2]), Settings.from_json(sys.argv[3]))))
