"""Making the concept bank and adding to it, against the published text tower that encodes concepts one by one."""

from __future__ import annotations

from functools import partial

from benchmarks.made_up import LAYERS, concept_names, guard_of
from benchmarks.reference import PublishedPipeline
from benchmarks.report import Figure
from benchmarks.settings import Settings
from benchmarks.timing import Call, interleaved
from latentguard import ConceptBank
from latentguard.encoders import load_encoder


def bank(settings: Settings) -> list[Figure]:
    """Time to build a bank, by its size, and to add one concept, in ms.

    The reference for a build is the time of one concept in the published tower, times their number.
    """
    pipeline = PublishedPipeline(settings.tower)
    encoder = load_encoder(device="cpu", layers=LAYERS, threads=settings.threads)
    figures = []
    for count in settings.concepts:
        guard, names = guard_of(encoder, count), concept_names(count)
        times = interleaved(
            {
                "reference": Call(pipeline.embed_concept, repeats=3),
                "build": Call(partial(ConceptBank, encoder, guard.mapping, names)),
                "add": Call(
                    partial(guard.concepts.add, "a new concept"),
                    repeats=10,
                    after=partial(guard.concepts.remove, "a new concept"),
                ),
            },
            settings.rounds_at(count),
        )
        reference = times["reference"].median * 1e3
        figures += [
            Figure("bank", f"build {count:,} concepts", times["build"].median * 1e3, "ms", reference * count),
            Figure("bank", f"add one to {count:,}", times["add"].median * 1e3, "ms", reference, times["add"].p99 * 1e3),
        ]
    return figures
