"""Figures of a model: how accurate it is, how near encryption keeps to plaintext, how fast and large everything is."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from privacy.encrypted_inference.client import Client
from privacy.encrypted_inference.data import LabelledImages
from privacy.encrypted_inference.parameters import DEFAULT
from privacy.encrypted_inference.server import Server
from privacy.encrypted_inference.weights import Floats, Weights, load_weights
from privacy.encrypted_inference.wire import BATCHED, MAX_PACKED, PACKED
from privacy.encrypted_inference.worker import Worker


@dataclass(frozen=True)
class Agreement:
    """How a model does on labelled images, and on the first ``encrypted`` of them under encryption."""

    layout: str
    images: int
    plaintext_accuracy: float
    encrypted: int
    encrypted_accuracy: float
    agreement: float
    largest_logit_error: float


def agreement(folder: Path, name: str, data: LabelledImages, encrypted: int, layout: str) -> Agreement:
    """Sends images from a real client to a real server and compares with the network in the clear."""
    weights = load_weights(folder)
    expected = weights.logits(data.pixels)
    chosen = data.pixels[:encrypted]
    client, keys = Client.generate(weights.architecture, name)
    with Server({name: folder}) as server:
        server.register(keys)
        size = min(MAX_PACKED, 10) if layout == PACKED else DEFAULT.slots
        parts = []
        for start in tqdm(range(0, len(chosen), size), desc=layout, disable=None):
            answer = server.classify(client.encrypt(chosen[start : start + size], layout))
            parts.append(client.decrypt(answer).logits)
    found = np.concatenate(parts)
    labels = data.classes[: len(found)]
    return Agreement(
        layout=layout,
        images=len(data),
        plaintext_accuracy=float((expected.argmax(1) == data.classes).mean()),
        encrypted=len(found),
        encrypted_accuracy=float((found.argmax(1) == labels).mean()),
        agreement=float((found.argmax(1) == expected[: len(found)].argmax(1)).mean()),
        largest_logit_error=float(np.abs(found - expected[: len(found)]).max()),
    )


def bench(folder: Path, name: str, runs: int, batch: int) -> Iterator[tuple[str, str]]:
    """What was measured and its value, for a table; latencies in the same process as the tutorial's network."""
    from privacy.encrypted_inference.reference import TutorialNetwork

    weights = load_weights(folder)
    random = np.random.default_rng(0)
    side = weights.architecture.side
    images = random.random((batch, side, side))

    tutorial = TutorialNetwork()
    ours = _InProcess(weights, name)
    windows = tutorial.encrypt(random.random((28, 28)))
    image = ours.read(ours.client.encrypt(images[:1], PACKED))
    theirs_seconds, our_seconds = _interleaved(
        runs, lambda: tutorial(*windows), lambda: ours.packed(image, ours.relin, ours.galois)
    )
    theirs, one = statistics.median(theirs_seconds), statistics.median(our_seconds)
    yield "tutorial network, one image, on the server", f"{theirs * 1e3:.0f} ms"
    yield f"{name}, one image, on the server", f"{one * 1e3:.1f} ms"
    ratios = [a / b for a, b in zip(theirs_seconds, our_seconds, strict=True)]
    yield "how many times faster (median, least of the runs)", f"{statistics.median(ratios):.1f}, {min(ratios):.1f}"

    pixels = ours.read(ours.client.encrypt(images, BATCHED))
    batched, single = [], []
    for _ in range(max(1, runs // 4)):
        batched.append(_seconds(lambda: ours.batched(pixels, ours.relin)))
        single.append(
            statistics.median(_seconds(lambda: ours.packed(image, ours.relin, ours.galois)) for _ in range(9))
        )
    rates = [batch * alone / together for alone, together in zip(single, batched, strict=True)]
    together = statistics.median(batched)
    yield (
        f"{name}, {batch:,} images at once, on the server",
        f"{together:.2f} s, {batch / together:.0f} images a second",
    )
    yield "how many times more images a second than one by one", f"{statistics.median(rates):.1f}"

    yield from _sizes(ours, tutorial, images)
    yield from _round_trips(folder, name, ours.client, ours.keys_message, images)


class _InProcess:
    """Client, keys and both evaluations in this process."""

    def __init__(self, weights: Weights, name: str) -> None:
        from privacy.encrypted_inference.evaluation import BatchEvaluator, PackedEvaluator
        from privacy.encrypted_inference.seal import from_bytes, sealapi
        from privacy.encrypted_inference.wire import Keys, decode

        self.client, self.keys_message = Client.generate(weights.architecture, name)
        keys = decode(self.keys_message, Keys)
        self.relin = from_bytes(sealapi.RelinKeys, keys.relin, DEFAULT, "keys")
        self.galois = from_bytes(sealapi.GaloisKeys, keys.rotations, DEFAULT, "keys")
        self.packed = PackedEvaluator(weights)
        self.batched = BatchEvaluator(weights)

    def read(self, message: bytes) -> list[Any]:
        from privacy.encrypted_inference.seal import from_bytes, sealapi
        from privacy.encrypted_inference.wire import Query, decode

        return [from_bytes(sealapi.Ciphertext, one, DEFAULT, "query") for one in decode(message, Query).ciphertexts]


def _sizes(ours: _InProcess, tutorial: Any, images: Floats) -> Iterator[tuple[str, str]]:
    yield "tutorial, sent once per client", _megabytes(tutorial.public_context_bytes())
    yield "sent once per client", _megabytes(len(ours.keys_message))
    yield "tutorial, sent per image", _megabytes(len(tutorial.encrypt(np.zeros((28, 28)))[0].serialize()))
    yield "sent per image", _megabytes(len(ours.client.encrypt(images[:1], PACKED)))
    batched = len(ours.client.encrypt(images, BATCHED))
    yield f"sent per image, {len(images):,} at once", f"{batched / len(images) / 1e3:.0f} kB ({_megabytes(batched)})"


def _round_trips(folder: Path, name: str, client: Client, keys: bytes, images: Floats) -> Iterator[tuple[str, str]]:
    worker = Worker({name: folder})
    with Server({name: folder}, worker=worker) as server:
        server.register(keys)
        yield "server process, ready", _megabytes(_resident(worker.pid))
        for layout, count in ((PACKED, 1), (BATCHED, len(images))):
            chosen = images[:count]
            query = client.encrypt(chosen, layout)
            answer = server.classify(query)
            times = [
                _seconds(lambda chosen=chosen, layout=layout: client.encrypt(chosen, layout)),  # type: ignore[misc]
                _seconds(lambda query=query: server.classify(query)),  # type: ignore[misc]
                _seconds(lambda answer=answer: client.decrypt(answer)),  # type: ignore[misc]
            ]
            yield (
                f"{layout}, {count:,}: encrypt, classify through the worker, decrypt",
                ", ".join(f"{seconds * 1e3:.0f} ms" for seconds in times),
            )
            yield f"{layout}, {count:,}: answer", _megabytes(len(answer))
            yield f"server process, most memory after {layout}", _megabytes(_resident(worker.pid, "VmHWM"))


def as_row(figures: Agreement) -> dict[str, Any]:
    return asdict(figures)


def _interleaved(runs: int, *calls: Callable[[], Any]) -> tuple[list[float], ...]:
    """Seconds of each call, taken in turns after one run that isn't counted, so that load meets all alike."""
    for call in calls:
        call()
    times: tuple[list[float], ...] = tuple([] for _ in calls)
    for _ in tqdm(range(runs), desc="bench", disable=None):
        for call, taken in zip(calls, times, strict=True):
            taken.append(_seconds(call))
    return times


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _megabytes(number: int) -> str:
    return f"{number / 1e6:.2f} MB"


def _resident(pid: int | None, field: str = "VmRSS") -> int:
    """Bytes of memory of a process, 0 where the system doesn't tell."""
    status = Path(f"/proc/{pid}/status")
    lines = status.read_text().splitlines() if status.exists() else []
    found = next((line for line in lines if line.startswith(f"{field}:")), f"{field}: 0 kB")
    return int(found.split()[1]) * 1024
