"""From a prompt's text to its verdict: ``LatentGuard.check`` and ``check_batch`` against the published pipeline."""

from __future__ import annotations

from functools import partial

from benchmarks.made_up import LAYERS, guard_of, prompt_of, prompts
from benchmarks.reference import TOKENS, PublishedPipeline
from benchmarks.report import Figure
from benchmarks.settings import WANTED_AT, Settings
from benchmarks.timing import Call, interleaved
from latentguard.encoders import load_encoder
from latentguard.encoders.base import Precision

_SHORT = 20
_WANTED = {f"{_SHORT} tokens, {WANTED_AT:,} concepts, int8": 300, f"{TOKENS} tokens, {WANTED_AT:,} concepts, int8": 100}


def check(settings: Settings) -> list[Figure]:
    """One prompt at a time, in ms: for short and full-length prompts, 8-bit and float32 encoder, by bank size."""
    pipeline = PublishedPipeline(settings.tower)
    precisions: tuple[Precision, ...] = ("int8", "fp32")
    encoders = {
        name: load_encoder(device="cpu", layers=LAYERS, precision=name, threads=settings.threads) for name in precisions
    }
    figures = []
    for count in settings.concepts:
        calls = {"reference": Call(pipeline.checker(count))}
        for precision, encoder in encoders.items():
            guard = guard_of(encoder, count)
            for tokens in (_SHORT, TOKENS):
                name = f"{tokens} tokens, {count:,} concepts, {precision}"
                calls[name] = Call(partial(guard.check, prompt_of(encoder, tokens)), settings.calls_at(count))
        times = interleaved(calls, settings.rounds_at(count))
        reference = times.pop("reference").median
        figures += [
            Figure(
                "check",
                name,
                taken.median * 1e3,
                "ms",
                reference * 1e3,
                taken.p99 * 1e3,
                wanted_ratio=_WANTED.get(name),
            )
            for name, taken in times.items()
        ]
    return figures


def evidence(settings: Settings) -> list[Figure]:
    """What the further evidence costs: ``check`` against that of a mapping layer alone on the encoder's last layer."""
    whole, bare = (load_encoder(device="cpu", layers=layers, threads=settings.threads) for layers in (LAYERS, None))
    figures = []
    for count in settings.concepts:
        guard, first = guard_of(whole, count), guard_of(bare, count, headed=False)
        for tokens in (_SHORT, TOKENS):
            prompt = prompt_of(whole, tokens)
            times = interleaved(
                {
                    "reference": Call(partial(first.check, prompt), settings.calls_at(count)),
                    "check": Call(partial(guard.check, prompt), settings.calls_at(count)),
                },
                settings.rounds_at(count),
            )
            figures.append(
                Figure(
                    "evidence",
                    f"{tokens} tokens, {count:,} concepts, all evidence",
                    times["check"].median * 1e3,
                    "ms",
                    times["reference"].median * 1e3,
                    times["check"].p99 * 1e3,
                    wanted_ratio=0.5 if count == WANTED_AT else None,
                )
            )
    return figures


def check_batch(settings: Settings) -> list[Figure]:
    """Many prompts in one call, in prompts per second, by bank size; the published pipeline takes them one by one."""
    pipeline = PublishedPipeline(settings.tower)
    encoder = load_encoder(device="cpu", layers=LAYERS, threads=settings.threads)
    batch = prompts(settings.prompts)
    figures = []
    for count in settings.concepts:
        guard = guard_of(encoder, count)
        times = interleaved(
            {"reference": Call(pipeline.checker(count)), "batch": Call(partial(guard.check_batch, batch))},
            rounds=2,
        )
        figures.append(
            Figure(
                "check_batch",
                f"{len(batch):,} prompts, {count:,} concepts",
                len(batch) / times["batch"].median,
                "prompts/s",
                1 / times["reference"].median,
            )
        )
    return figures
