"""What a model answers: the likeliest of several answers, the text most like an image, or what it writes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from privacy.errors import AuditedModelError
from privacy.memorization.benchmarks import Question
from privacy.memorization.collators import (
    IGNORED,
    Asked,
    CaptionCollator,
    ChatCollator,
    QuestionCollator,
)
from privacy.memorization.models import LoadedModel, first_line, quiet

_T = TypeVar("_T")


def choose(loaded: LoadedModel, questions: Sequence[Question], batch_size: int) -> list[str]:
    """The choice of each question that the model finds likeliest, given that the answer ends after it.

    A CLIP-like model chooses the one whose text, behind that of the question, is most like the image.

    Raises:
        AuditedModelError: a question has no choices, or a CLIP-like model is asked without an image.
        DataError: an image can't be read.
    """
    for question in questions:
        if not question.choices:
            raise AuditedModelError(f"question {question.id}: has no choices, and can only be answered by generation")
    pairs = [Asked(each.image, each.prompt, choice) for each in questions for choice in each.choices]
    score = answer_log_likelihoods if loaded.kind == "vlm" else _similarities
    scores: list[float] = []
    with tqdm(total=len(pairs), desc="answers", unit="choice", disable=None, leave=False) as bar:
        for batch in _batches(pairs, batch_size):
            scores += score(loaded, batch).tolist()
            bar.update(len(batch))
    rest = iter(scores)
    chosen = []
    for question in questions:
        of_question = list(islice(rest, len(question.choices)))
        chosen.append(question.choices[of_question.index(max(of_question))])
    return chosen


@torch.inference_mode()
def answer_log_likelihoods(loaded: LoadedModel, pairs: Sequence[Asked]) -> Tensor:
    """log P(answer | image, question) of each pair [B], over all tokens of the answer and the one that ends it."""
    batch = _on_device(loaded, ChatCollator(loaded.processor)(pairs))
    labels = batch.pop("labels")[:, 1:]  # [B, L - 1]
    # Some models, as GIT, put states of the image before those of the text.
    logits = loaded.model(**batch).logits[:, -batch["input_ids"].shape[1] : -1]  # [B, L - 1, V]
    # Of the long rows of image tokens, nothing is turned into float32.
    answered = labels != IGNORED
    losses = F.cross_entropy(logits[answered].float(), labels[answered], reduction="none")
    summed = torch.zeros(len(labels), device=losses.device)
    return -summed.index_add(0, answered.nonzero()[:, 0], losses)


def write(loaded: LoadedModel, questions: Sequence[Question], batch_size: int, max_new_tokens: int) -> list[str]:
    """What the model writes as its answer to each question, by greedy decoding.

    Raises:
        AuditedModelError: the model is a CLIP-like one, or can't generate from questions.
        DataError: an image can't be read.
    """
    if loaded.kind == "clip":
        raise AuditedModelError("a CLIP-like model writes no answers: it can only choose, by likelihood")
    pairs = [Asked(each.image, each.prompt, "") for each in questions]
    written: list[str] = []
    with tqdm(total=len(pairs), desc="answers", unit="question", disable=None, leave=False) as bar:
        for batch in _batches(pairs, batch_size):
            written += _generated(loaded, batch, max_new_tokens)
            bar.update(len(batch))
    return written


@torch.inference_mode()
def _generated(loaded: LoadedModel, pairs: Sequence[Asked], max_new_tokens: int) -> list[str]:
    batch = _on_device(loaded, QuestionCollator(loaded.processor)(pairs))
    greedy = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    try:
        with quiet():
            ids = loaded.model.generate(**batch, **greedy, max_new_tokens=max_new_tokens)
    except ValueError as error:  # a model that can't go on from what its own processor makes
        raise AuditedModelError(f"{type(loaded.model).__name__} writes no answers: {first_line(error)}") from error
    new: list[str] = loaded.processor.batch_decode(ids[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return new


@torch.inference_mode()
def _similarities(loaded: LoadedModel, pairs: Sequence[Asked]) -> Tensor:
    """The logit [B] of each pair's image and text."""
    logits: Tensor = loaded.model(**_on_device(loaded, CaptionCollator(loaded.processor)(pairs))).logits_per_image
    return logits.diagonal()


def _on_device(loaded: LoadedModel, batch: dict[str, Any]) -> dict[str, Any]:
    """The batch where the model is, and images in its precision."""
    device, dtype = loaded.model.device, loaded.model.dtype
    return {name: each.to(device, dtype if each.is_floating_point() else each.dtype) for name, each in batch.items()}


def _batches(items: Sequence[_T], size: int) -> Iterator[Sequence[_T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
