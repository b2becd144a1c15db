"""``python -m benchmarks.gpu``: screening and training on a GPU, by batch size, precision and compilation.

Beside them stand the published pipeline, restated in this process, and what its authors claim. The weights are the
shipped ones, the encoder the embedded one, in PyTorch; prompts and concepts are made up. ``--device cpu`` runs the same
code on the processor, where its speed tells nothing of a GPU's.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.made_up import LAYERS, concept_names, prompts
from benchmarks.reference import VIT_L_14, PublishedPipeline, Tower
from benchmarks.settings import WANTED_AT
from latentguard import LatentGuard
from latentguard.encoders.embedded import EmbeddedEncoder
from latentguard.encoders.torch_runtime import checked_compiler
from latentguard.errors import DeviceError
from latentguard.normalize import normalize
from latentguard.training.cache import TokenStateCache
from latentguard.training.compute import Compute, Half
from latentguard.training.pairs import TrainingPair
from latentguard.training.trainer import Trainer, TrainingArguments

RECIPE_STEPS = 1_592
"""Steps of the training that made the shipped weights' prompt head, and nearly all of the work on their data."""

_PAIRS_A_CONCEPT = 4


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
        precisions: of encoder and guard, and of training; the first is what scores are compared with.
        concepts: of the guard's bank.
        batches: prompts given to the guard at a time.
        rounds: how often each batch is timed; the fastest counts.
        warm_up: single prompts, and training steps, before the clock runs.
        calls: single prompts timed.
        tower: the sizes of the published pipeline's text encoder.
        reference_calls: prompts that the published pipeline is timed with.
        trained: concepts that the trained pairs are made up of.
        steps: training steps timed.
        recipe: of the training.
    """

    precisions: tuple[Half, ...] = ("fp32", "bf16", "fp16")
    concepts: int = WANTED_AT
    batches: tuple[int, ...] = (8, 64, 512, 4096)
    rounds: int = 3
    warm_up: int = 10
    calls: int = 300
    tower: Tower = VIT_L_14
    reference_calls: int = 30
    trained: int = 400
    steps: int = 200
    recipe: TrainingArguments = field(default_factory=TrainingArguments)


QUICK = Sizes(batches=(8, 512), rounds=1, warm_up=3, calls=40, reference_calls=5, trained=80, steps=5)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the tables; returns the exit status: 2 if there is no GPU and the processor was not asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="(default: cuda)")
    parser.add_argument("--quick", action="store_true", help="fewer batch sizes, calls and steps")
    parser.add_argument(
        "--compile", metavar="BACKEND", help="of torch.compile (default: inductor on a GPU, none on the processor)"
    )
    given = parser.parse_args(arguments)
    if given.device == "cuda" and not torch.cuda.is_available():
        print("benchmarks.gpu: no GPU here; --device cpu runs the same code on the processor", file=sys.stderr)
        return 2
    device, sizes = torch.device(given.device), QUICK if given.quick else Sizes()
    try:
        compiler = checked_compiler(given.compile or ("inductor" if given.device == "cuda" else None))
        print(_circumstances(device))
        print(screening(device, sizes, compiler), flush=True)
        print(training(device, sizes, compiler), flush=True)
    except DeviceError as error:
        print(f"benchmarks.gpu: {error}", file=sys.stderr)
        return 2
    return 0


def screening(device: torch.device, sizes: Sizes, compiler: str | None) -> str:
    """A Markdown table: one prompt's latency, prompts per second by batch size, memory, and how scores differ."""
    columns = ["one prompt, p50", "p99", *(f"{size:,} at a time" for size in sizes.batches), "memory", "difference"]
    rows = []
    exact = None
    for precision, by in _kinds(sizes, compiler):
        _forget_memory(device)
        encoder = EmbeddedEncoder(device=device, precision=precision, backend="torch", layers=LAYERS, compiler=by)
        guard = LatentGuard.from_pretrained(encoder=encoder, concepts=concept_names(sizes.concepts))
        latencies = _latencies(guard.check, prompts(sizes.calls + sizes.warm_up), sizes.warm_up)
        rates = [f"{_rate(guard, size, sizes.rounds):,.0f}/s" for size in sizes.batches]
        scores = guard.score(prompts(max(sizes.batches)))
        exact = scores if exact is None else exact
        difference = f"{float(np.abs(scores - exact).max()):.2g}"
        rows.append([_named(precision, by), *latencies, *rates, _memory(device), difference])
        reading = _reading(encoder, max(sizes.batches))
    _forget_memory(device)
    check = PublishedPipeline(sizes.tower, str(device)).checker(sizes.concepts)
    latencies = _latencies(lambda _: check(), [""] * (sizes.reference_calls + 1), 1)
    empty = [""] * len(sizes.batches)
    rows.append(["published pipeline, restated", *latencies, *empty, _memory(device), ""])
    rows.append(["published pipeline, its authors' claim", "about 1 ms", "", *empty, "", ""])
    title = (
        f"\nScreening, {sizes.concepts:,} concepts, {max(sizes.batches):,} prompts at most; difference: the largest of "
        f"a score, from fp32's.\nOf this the processor takes, on one core, {reading:.3f} ms a prompt to tokenise.\n"
    )
    return "\n".join([title, _table(["", *columns], rows)])


def training(device: torch.device, sizes: Sizes, compiler: str | None) -> str:
    """A Markdown table: training steps per second of the recipe's batches, and how long all of its steps take."""
    pairs, negatives = _made_up_pairs(sizes.trained)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        encoder = EmbeddedEncoder(device=device, backend="torch", layers=LAYERS)
        cache = TokenStateCache(Path(folder) / "states", encoder)
        start = time.perf_counter()
        encoded = cache.fill([normalize(text) for pair in pairs for text in (pair.unsafe, str(pair.safe))]).encoded
        encoding = encoded / (time.perf_counter() - start)
        for number, (precision, by) in enumerate(_kinds(sizes, compiler)):
            _forget_memory(device)
            trainer = _TimedTrainer(
                encoder,
                cache,
                pairs,
                [negatives],
                sizes.recipe,
                Path(folder) / str(number),
                Compute(device, precision, by),
            )
            rate = trainer.steps_a_second(sizes.steps, sizes.warm_up)
            minutes = RECIPE_STEPS / rate / 60
            rows.append([_named(precision, by), f"{rate:.1f}/s", f"{minutes:.1f} min", _memory(device)])
    rows.append(["published training, its authors' claim, one RTX 3090", "", "about 30 min", ""])
    title = (
        f"\nTraining, batches of the default recipe; the shipped weights took {RECIPE_STEPS:,} steps, evaluations left "
        f"out.\nTexts are encoded once before, {encoding:,.0f}/s here.\n"
    )
    return "\n".join([title, _table(["", "steps", "the shipped recipe", "memory"], rows)])


class _TimedTrainer(Trainer):
    """Trains a few steps of its recipe with a clock beside."""

    _first: int
    _ends: list[float]

    def steps_a_second(self, steps: int, warm_up: int) -> float:
        """The rate of that many steps, after some that warm up."""
        self.steps, self._first, self._ends = steps + warm_up, warm_up, []
        self.train()
        return steps / (self._ends[-1] - self._ends[warm_up - 1])

    def _step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super()._step(*args, **kwargs)
        if len(self._ends) + 1 in (self._first, self.steps):
            _finish(self.device)  # only where the clock is read: in between, the processor may run ahead
        self._ends.append(time.perf_counter())
        return loss


def _kinds(sizes: Sizes, compiler: str | None) -> list[tuple[Half, str | None]]:
    """Each precision as it is, and "bf16", which is what a GPU trains in unless told otherwise, compiled."""
    kinds: list[tuple[Half, str | None]] = [(precision, None) for precision in sizes.precisions]
    return kinds if compiler is None else [*kinds, ("bf16", compiler)]


def _latencies(call: Callable[[str], object], texts: Sequence[str], warm_up: int) -> tuple[str, str]:
    taken = []
    for text in texts:
        start = time.perf_counter()
        call(text)
        taken.append((time.perf_counter() - start) * 1e3)
    p50, p99 = np.percentile(taken[warm_up:], [50, 99])
    return f"{p50:.2f} ms", f"{p99:.2f} ms"


def _rate(guard: LatentGuard, size: int, rounds: int) -> float:
    """Prompts per second, from their text to their verdicts."""
    batch = prompts(size)
    guard.check_batch(batch)
    taken = []
    for _ in range(rounds):
        start = time.perf_counter()
        guard.check_batch(batch)
        taken.append(time.perf_counter() - start)
    return size / min(taken)


def _reading(encoder: EmbeddedEncoder, count: int) -> float:
    """Milliseconds to normalise and tokenise a prompt."""
    batch = prompts(count)
    start = time.perf_counter()
    for prompt in batch:
        encoder.windows(normalize(prompt))
    return (time.perf_counter() - start) / count * 1e3


def _made_up_pairs(concepts: int) -> tuple[list[TrainingPair], list[str]]:
    """Pairs of that many concepts, and as many harmless prompts as pairs."""
    scenes = list(dict.fromkeys(prompts(20 * concepts * _PAIRS_A_CONCEPT)))
    count = min(len(scenes) // 2, concepts * _PAIRS_A_CONCEPT)
    names = itertools.cycle(concept_names(concepts))
    pairs = [
        TrainingPair(name, f"{scene}, {name}", scene, "violence", "made up")
        for name, scene in zip(names, scenes[:count], strict=False)
    ]
    return pairs, scenes[count : 2 * count]


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _forget_memory(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def _memory(device: torch.device) -> str:
    """The most that PyTorch held on the GPU since :func:`_forget_memory`."""
    return f"{torch.cuda.max_memory_allocated(device) / 1e6:,.0f} MB" if device.type == "cuda" else "not a GPU's"


def _named(precision: str, compiler: str | None) -> str:
    return precision if compiler is None else f"{precision}, compiled by {compiler}"


def _circumstances(device: torch.device) -> str:
    place = torch.cuda.get_device_name(device) if device.type == "cuda" else "no GPU: the processor"
    return f"{place}, torch {torch.__version__}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in [header, rule, *rows])


if __name__ == "__main__":
    sys.exit(main())
