"""Time and memory by batch size and number of concepts, against the published calculation.

Of several calls the fastest counts: what a busy machine adds is not the calculation's cost.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import partial

from torch import Tensor
from tqdm import tqdm

from benchmarks.cost_memory import measurable, peaks
from benchmarks.made_up import LAYERS, guard_of, prompts
from benchmarks.reference import PublishedPipeline, published_scores
from benchmarks.report import Figure
from benchmarks.settings import Settings
from benchmarks.timing import Call, interleaved
from latentguard import LatentGuard
from latentguard.arrays import Array, as_numpy
from latentguard.encoders import load_encoder
from latentguard.encoders.base import SeveralPasses, TextEncoder, Window, batches
from latentguard.encoders.passes import in_batches
from latentguard.normalize import normalize
from latentguard.onnx_scoring import OnnxScoring

TIME, ENCODER, MEMORY, LOADED = "a call", "of it the encoder", "memory at most", "memory before the first call"
PARTS = ("clean-up and tokens", "encoder", "mapping layer and prompt head", "names spelled out")
_ROUNDS = 3
_CALLS = 16  # of a guard with one prompt at each turn; the more prompts, the fewer
_PARTS_AT = 64


def cost(settings: Settings) -> list[Figure]:
    """Each batch size with each bank: ms for a call and for the encoder in it, and MB; then a call's parts, in ms."""
    pipeline = PublishedPipeline(settings.tower, settings.device)
    encoder = load_encoder(device=settings.device, layers=LAYERS, threads=settings.threads)
    figures = []
    with tqdm(total=len(settings.concepts) * (len(settings.batches) + 2), leave=False, disable=None) as bar:
        for concepts in settings.concepts:
            guard = guard_of(encoder, concepts)
            for size in settings.batches:
                bar.set_description(f"{size:,} prompts, {concepts:,} concepts")
                figures += _times(guard, pipeline, size, concepts, settings)
                bar.update()
            bar.set_description(f"memory, {concepts:,} concepts")
            figures += _memory(concepts, settings)
            bar.update()
            bar.set_description(f"parts, {concepts:,} concepts")
            for size in sorted({settings.batches[0], min(_PARTS_AT, settings.batches[-1])}):
                figures += _parts(guard, size, concepts, settings)
            bar.update()
    return figures


def _times(
    guard: LatentGuard, pipeline: PublishedPipeline, size: int, concepts: int, settings: Settings
) -> list[Figure]:
    batch, repeats = prompts(size), max(1, _CALLS // size)
    calls = {
        "whole": Call(partial(guard.check_batch, batch), repeats),
        "encoder": Call(partial(_read_and_encode, guard.encoder, batch), repeats),
    }
    if size * concepts <= settings.pairs:
        bank, states = pipeline.concepts(concepts), pipeline.states(size)
        calls |= {
            "published encoder": Call(lambda: _computed(pipeline.states(size))),
            # The fastest way on a processor, prompt by prompt; see published_scores_at_once.
            "published scoring": Call(
                lambda: [_computed(published_scores(pipeline.mapping, bank, one)) for one in states]
            ),
        }
    least = _least(calls, settings)
    encoder = least.get("published encoder")
    whole = None if encoder is None else encoder + least["published scoring"]
    return [
        Figure("cost", TIME, least["whole"], "ms", whole, prompts=size, concepts=concepts),
        Figure("cost", ENCODER, least["encoder"], "ms", encoder, prompts=size, concepts=concepts),
    ]


def _memory(concepts: int, settings: Settings) -> list[Figure]:
    if not measurable(settings.device):
        print("cost: memory is left out, since this system has no /proc/self/status", file=sys.stderr)
        return []
    ours, published = (peaks(side, concepts, settings) for side in ("ours", "published"))
    return [
        Figure("cost", LOADED, ours[0], "MB", published[0], concepts=concepts),
        *(
            Figure("cost", MEMORY, ours[size], "MB", published.get(size), prompts=size, concepts=concepts)
            for size in settings.batches
        ),
    ]


def _parts(guard: LatentGuard, size: int, concepts: int, settings: Settings) -> list[Figure]:
    """What the steps of a call take, each by itself."""
    snapshot = guard.concepts.snapshot
    if snapshot.scoring is None:
        raise ValueError("a guard without heads has no such parts")
    matcher, batch = snapshot.scoring.matcher, prompts(size)
    texts = [normalize(prompt) for prompt in batch]
    windows = _windows(guard.encoder, texts)
    steps: Mapping[str, Callable[[], object]] = {
        "clean-up and tokens": lambda: _windows(guard.encoder, [normalize(prompt) for prompt in batch]),
        "encoder": lambda: _encode(guard.encoder, windows),
        "mapping layer and prompt head": _scoring(guard, windows, settings.threads),
        "names spelled out": lambda: [matcher.match(matcher.forms(text)) for text in texts],
    }
    repeats = max(1, _CALLS // size)
    least = _least({name: Call(step, repeats) for name, step in steps.items()}, settings)
    return [Figure("cost", name, least[name], "ms", None, prompts=size, concepts=concepts) for name in PARTS]


def _least(calls: Mapping[str, Call], settings: Settings) -> dict[str, float]:
    """The fastest of each, in ms."""
    times = interleaved(calls, min(_ROUNDS, settings.rounds))
    return {name: min(taken.seconds) * 1e3 for name, taken in times.items()}


def _scoring(guard: LatentGuard, windows: list[Window], threads: int) -> Callable[[], object]:
    """Scores windows that are encoded beforehand, as the guard does: on a processor in ONNX Runtime."""
    snapshot, heads, lengths = guard.concepts.snapshot, guard.heads, [len(window.ids) for window in windows]
    if guard.encoder.device.type != "cpu":
        places = batches(lengths, guard.encoder.device)
        attended = [guard.mapping.attended(guard.encoder.encode_windows([windows[i] for i in some])) for some in places]

        def on_gpu() -> None:
            for z, mask in attended:
                _computed(guard.mapping.score(snapshot.queries, z, mask))
                _computed(heads.harm(z, mask) if heads is not None else z)

        return on_gpu
    scoring = OnnxScoring(guard.mapping, heads, threads)
    states = [guard.encoder.encode_windows([window]) for window in windows]
    known = [(as_numpy(of_one.hidden)[0], as_numpy(of_one.pooled)[0]) for of_one in states]

    def score(encoder: TextEncoder, places: list[int]) -> None:
        one = scoring if encoder is guard.encoder else scoring.single_threaded()
        for i in places:
            one.evidence(snapshot.queries, *known[i])

    return lambda: list(in_batches(guard.encoder, lengths, score))


def _read_and_encode(encoder: TextEncoder, texts: list[str]) -> None:
    _encode(encoder, _windows(encoder, texts))


def _windows(encoder: TextEncoder, texts: list[str]) -> list[Window]:
    if isinstance(encoder, SeveralPasses) and len(texts) > 1:
        return [window for some in encoder.windows_of_each(texts) for window in some]
    return [window for text in texts for window in encoder.windows(text)]


def _encode(encoder: TextEncoder, windows: list[Window]) -> None:
    def work(one: TextEncoder, places: list[int]) -> None:
        _computed(one.encode_windows([windows[i] for i in places]).pooled)

    for _ in in_batches(encoder, [len(window.ids) for window in windows], work):
        pass


def _computed(result: Tensor) -> Array:
    """A GPU answers before it has computed; what is copied from it has been."""
    return as_numpy(result)
