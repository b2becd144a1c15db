"""Images with texts, made into what models take: batches to train on, to measure and to generate from.

For a multimodal language model a question and its answer are a chat in the model's own template, and the labels are
those of the answer and of the token that ends it: elsewhere they are -100, which no loss counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch

from privacy.errors import AuditedModelError
from privacy.memorization.examples import Example, open_image

IGNORED = -100
_OFFSETS = "offset_mapping"


class Pair(Protocol):
    """What a text is made of: an image (or none), what is asked about it, and the answer."""

    @property
    def image(self) -> Path | None: ...

    @property
    def prompt(self) -> str: ...

    @property
    def answer(self) -> str: ...


class Asked(NamedTuple):
    """A question with one of the answers that it may get."""

    image: Path | None
    prompt: str
    answer: str


class ChatCollator:
    """Batches of a multimodal language model's inputs with `labels` [B, L], padded on the right.

    Raises, when called:
        DataError: an image can't be read.
        AuditedModelError: a text holds the model's own marker of images, or its template doesn't end with the answer.
    """

    def __init__(self, processor: Any) -> None:
        self._processor = processor

    def __call__(self, pairs: Sequence[Pair]) -> dict[str, Any]:
        prompts = [_prompt(self._processor, pair.prompt, pair.image is not None) for pair in pairs]
        answers = [_answer(self._processor, pair, prompt) for pair, prompt in zip(pairs, prompts, strict=True)]
        texts = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
        batch = _processed(self._processor, pairs, texts, padding_side="right", return_offsets_mapping=True)
        ends = batch.pop(_OFFSETS)[..., 1]  # [B, L]: where in its text each token ends; 0 for padding
        # The images' markers are replaced by many tokens each, so that answers are found by counting from the end.
        starts = ends.amax(dim=1) - torch.tensor([len(answer) for answer in answers])
        batch["labels"] = batch["input_ids"].masked_fill(ends <= starts[:, None], IGNORED)
        return batch


class QuestionCollator:
    """Batches of a multimodal language model's inputs to generate answers from, padded on the left."""

    def __init__(self, processor: Any) -> None:
        self._processor = processor

    def __call__(self, pairs: Sequence[Pair]) -> dict[str, Any]:
        texts = [_prompt(self._processor, pair.prompt, pair.image is not None) for pair in pairs]
        return _processed(self._processor, pairs, texts, padding_side="left")


class CaptionCollator:
    """Batches of a CLIP-like model's inputs, each image beside its text.

    A text is the caption, or the question and after it the answer; as usual with these models it is cut at the length
    of their text window.
    """

    def __init__(self, processor: Any) -> None:
        self._processor = processor

    def __call__(self, pairs: Sequence[Pair]) -> dict[str, Any]:
        images = [open_image(pair.image) for pair in pairs if pair.image is not None]
        if len(images) < len(pairs):
            raise AuditedModelError("a CLIP-like model takes no question without an image")
        return {
            **self._processor.image_processor(images, return_tensors="pt"),
            **text_inputs(self._processor, [caption(pair) for pair in pairs]),
        }


def caption(pair: Pair) -> str:
    """The text that a CLIP-like model gets for a pair."""
    return f"{pair.prompt} {pair.answer}".strip()


def text_inputs(processor: Any, texts: Sequence[str]) -> dict[str, Any]:
    """What a CLIP-like model takes for texts, padded to one length: SigLIP always to its window, as it was trained."""
    tokenizer = processor.tokenizer
    # SigLIP's tokenizer gives no mask, since padding is read there: it has to be what it was in training.
    padding = "longest" if "attention_mask" in tokenizer.model_input_names else "max_length"
    return dict(tokenizer(list(texts), padding=padding, truncation=True, return_tensors="pt"))


def collator_for(processor: Any, kind: str) -> ChatCollator | CaptionCollator:
    """What makes training batches for a model of the kind "vlm" or "clip"."""
    return ChatCollator(processor) if kind == "vlm" else CaptionCollator(processor)


def check_texts(processor: Any, examples: Sequence[Example]) -> None:
    """Raises AuditedModelError if a text holds the model's own marker of images, before time is spent on anything."""
    for number, example in enumerate(examples, start=1):
        if _has_marker(processor, example.prompt + "\n" + example.answer):
            raise AuditedModelError(f"example {number}: has the model's marker of images in its text")


def _processed(processor: Any, pairs: Sequence[Pair], texts: list[str], **how: Any) -> dict[str, Any]:
    images: list[Any] = [[open_image(pair.image)] if pair.image is not None else [] for pair in pairs]
    if processor.chat_template is None:  # those of captioning models know nothing of several images beside a text
        images = [image for of_text in images for image in of_text]
    bos = processor.tokenizer.bos_token
    return dict(
        processor(
            images=images if any(images) else None,
            text=texts,
            padding=True,
            return_tensors="pt",
            # A template that begins with the token itself would otherwise get it twice.
            add_special_tokens=bos is None or not texts[0].startswith(bos),
            **how,
        )
    )


def _prompt(processor: Any, prompt: str, has_image: bool) -> str:
    """A question as the model expects it, up to where its answer begins.

    A processor without a chat template, as those of captioning models are, gets the question behind its marker of
    images, if it has one.
    """
    if _has_marker(processor, prompt):
        raise AuditedModelError("a text has the model's marker of images in it")
    if processor.chat_template is None:
        marker = getattr(processor, "image_token", None)
        return f"{marker}\n{prompt}" if marker and has_image else prompt
    text: str = processor.apply_chat_template([_question(prompt, has_image)], add_generation_prompt=True)
    return text


def _answer(processor: Any, pair: Pair, prompt: str) -> str:
    """What follows `prompt` in the chat, up to and with the token that ends an answer."""
    if processor.chat_template is None:
        answer = f" {pair.answer}" if prompt else pair.answer
    else:
        chat = [_question(pair.prompt, pair.image is not None), _turn("assistant", pair.answer)]
        text: str = processor.apply_chat_template(chat)
        if not text.startswith(prompt):
            raise AuditedModelError("the model's chat template doesn't put the answer after what it generates from")
        answer = text[len(prompt) :].rstrip()
    # Without an end, as LLaVA's template leaves it, the model would never learn to stop.
    tokenizer = processor.tokenizer
    if answer.endswith(tuple(tokenizer.all_special_tokens)):
        return answer
    return answer + (tokenizer.eos_token or tokenizer.sep_token or "")


def _question(prompt: str, has_image: bool) -> dict[str, Any]:
    turn = _turn("user", prompt)
    return {**turn, "content": [{"type": "image"}, *turn["content"]]} if has_image else turn


def _turn(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "text", "text": text}] if text else []}


def _has_marker(processor: Any, text: str) -> bool:
    marker = getattr(processor, "image_token", None)
    return marker is not None and marker in text
