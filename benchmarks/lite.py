"""The guard in numpy against the guard in PyTorch, both of the shipped weights: per prompt, and from nothing."""

from __future__ import annotations

import subprocess
import sys
from functools import partial

from benchmarks.made_up import prompt_of, prompts
from benchmarks.report import Figure
from benchmarks.settings import Settings
from benchmarks.timing import Call, interleaved
from latentguard import LatentGuard

_TOKENS = (20, 77)
_FIRST_VERDICT = "from latentguard import LatentGuard; LatentGuard.from_pretrained(device={!r}).check('a bar fight')"


def lite(settings: Settings) -> list[Figure]:
    """One prompt at a time in ms, and many in prompts per second; the reference scores in PyTorch."""
    light, full = (LatentGuard.from_pretrained(device=name, threads=settings.threads) for name in ("numpy", "cpu"))
    figures = []
    for tokens in _TOKENS:
        prompt = prompt_of(light.encoder, tokens)
        repeats = -(-settings.calls // settings.rounds)
        calls = {
            "light": Call(partial(light.check, prompt), repeats),
            "full": Call(partial(full.check, prompt), repeats),
        }
        times = interleaved(calls, settings.rounds)
        what = f"check, {tokens} tokens"
        median, reference = times["light"].median * 1e3, times["full"].median * 1e3
        figures.append(Figure("lite", what, median, "ms", reference, times["light"].p99 * 1e3))
    batch = prompts(settings.prompts)
    calls = {"light": Call(partial(light.check_batch, batch)), "full": Call(partial(full.check_batch, batch))}
    times = interleaved(calls, rounds=2)
    rates = [len(batch) / times[name].median for name in ("light", "full")]
    return [*figures, Figure("lite", f"check_batch, {len(batch):,} prompts", rates[0], "prompts/s", rates[1])]


def start(settings: Settings) -> list[Figure]:
    """Processes from their start to their end, in ms; the reference is one that gets to a verdict in PyTorch."""
    commands = {
        "first verdict in numpy": ["-c", _FIRST_VERDICT.format("numpy")],
        "first verdict in PyTorch": ["-c", _FIRST_VERDICT.format("cpu")],
        "python -m latentguard --help": ["-m", "latentguard", "--help"],
    }
    wanted = {"first verdict in numpy": 2000.0, "python -m latentguard --help": 500.0}
    times = interleaved({name: Call(partial(_run, command)) for name, command in commands.items()}, settings.rounds)
    reference = times.pop("first verdict in PyTorch").median * 1e3
    return [
        Figure("start", name, taken.median * 1e3, "ms", reference, wanted_value=wanted[name])
        for name, taken in times.items()
    ]


def _run(arguments: list[str]) -> None:
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
