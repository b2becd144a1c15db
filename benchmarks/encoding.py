"""The embedded encoder as it is used on a processor against transformers as it comes: prompts a second, and states."""

from __future__ import annotations

import random
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.made_up import LAYERS, prompt_of, prompts
from benchmarks.report import Figure
from benchmarks.settings import Settings
from benchmarks.timing import Call, interleaved
from latentguard.encoders.base import Precision, TextEncoder, TokenStates
from latentguard.encoders.embedded import EmbeddedEncoder
from latentguard.encoders.export import export_embedded
from latentguard.encoders.passes import in_batches
from latentguard.records import read_prompts

_BATCH = 32  # of the reference, which takes prompts as they come
_WANTED = 6


def encoding(settings: Settings) -> list[Figure]:
    """From texts to states: many in prompts per second, one in ms; the reference is transformers in float32."""
    texts = chosen_prompts(settings)
    precisions: tuple[Precision, ...] = ("int8", "fp32")
    with tempfile.TemporaryDirectory() as folder:
        plain = _Plain(export_embedded(Path(folder) / "model"))
        ours = {
            name: EmbeddedEncoder(device="numpy", layers=LAYERS, precision=name, threads=settings.threads)
            for name in precisions
        }
        many = {"reference": Call(partial(plain.encode, texts))}
        many |= {name: Call(partial(_encode, encoder, texts)) for name, encoder in ours.items()}
        times = interleaved(many, rounds=3)
        rates = {name: len(texts) / taken.median for name, taken in times.items()}
        figures = [
            Figure(
                "encoding",
                f"{len(texts):,} prompts, {name}",
                rates[name],
                "prompts/s",
                rates["reference"],
                wanted_ratio=_WANTED if name == "int8" else None,
            )
            for name in ours
        ]
        text = prompt_of(ours["int8"], 20)
        repeats = -(-settings.calls // settings.rounds)
        one = {"reference": Call(partial(plain.encode, [text]), repeats)}
        one |= {name: Call(partial(encoder.encode, [text]), repeats) for name, encoder in ours.items()}
        times = interleaved(one, settings.rounds)
        reference = times.pop("reference").median * 1e3
        return figures + [
            Figure("encoding", f"20 tokens, {name}", taken.median * 1e3, "ms", reference, taken.p99 * 1e3)
            for name, taken in times.items()
        ]


def chosen_prompts(settings: Settings) -> list[str]:
    """So many prompts: made up, or drawn from the files asked for, the same at every call; DataError for a bad file."""
    if not settings.prompt_files:
        return prompts(settings.prompts)
    known = [row.prompt for name in settings.prompt_files for row in read_prompts(Path(name))]
    return random.Random(0).sample(known, min(settings.prompts, len(known)))


class _Plain:
    """The model in transformers: batches of prompts as they come, padded to the longest of each."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModel, AutoTokenizer

        from latentguard.encoders.huggingface import quiet_transformers

        with quiet_transformers():
            self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)
            self._model: Any = AutoModel.from_pretrained(folder).eval()

    @torch.inference_mode()
    def encode(self, texts: list[str]) -> None:
        for start in range(0, len(texts), _BATCH):
            some = texts[start : start + _BATCH]
            self._model(**self._tokenizer(some, padding=True, truncation=True, return_tensors="pt"))


def _encode(encoder: EmbeddedEncoder, texts: list[str]) -> None:
    windows = [window for some in encoder.windows_of_each(texts) for window in some]

    def states(one: TextEncoder, places: list[int]) -> TokenStates:
        return one.encode_windows([windows[i] for i in places])

    for _, found in in_batches(encoder, [len(window.ids) for window in windows], states):
        if not np.isfinite(found.pooled).all():
            raise ValueError("states that are not finite")
