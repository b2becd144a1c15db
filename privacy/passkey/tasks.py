"""The tasks that a text model can be fine-tuned for: what an example is, how a model sees it, what is measured.

A task turns examples into features with the model's own tokenizer. What makes a run an encrypted one happens to the
ids afterwards, so that no task knows of encryption.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

from privacy.errors import DataError
from privacy.passkey.data import Rows
from privacy.passkey.metrics import accuracy, bleu, entity_scores, macro_f1, rouge

IGNORED = -100  # a label that the losses of transformers leave out
_MAX_LABELS = 1000

Features = list[dict[str, Any]]
"""For each example, lists by the names that models give them: input_ids, attention_mask, labels, …"""
Labels = Sequence[str]
"""The names of the classes in the order of their ids."""
Measure = Callable[[Sequence[str], Sequence[str]], dict[str, float]]
"""Metrics by name from the texts that were generated and the right ones."""
_E = TypeVar("_E")


@dataclass(frozen=True)
class Labelled:
    """A text, or a pair of texts, and its class."""

    text: str
    pair: str | None
    label: str


@dataclass(frozen=True)
class Tagged:
    """The tokens of a sentence and a tag for each."""

    tokens: list[str]
    tags: list[str]


@dataclass(frozen=True)
class Rewritten:
    """A text and what a model shall make of it."""

    source: str
    target: str


class Task(ABC, Generic[_E]):
    """One kind of task.

    columns: what its columns are called where nothing else is said. metric: the one of `scores` that models are
    compared by. model_class: the class of transformers that its models are. generates: models write texts.
    """

    columns: tuple[str, ...]
    metric: str
    model_class: str
    generates = False

    @abstractmethod
    def examples(self, rows: Rows) -> list[_E]:
        """The rows, checked; raises DataError, which names the row and the field."""

    def labels(self, train: Sequence[_E]) -> list[str]:
        """The names of the classes in the order of their ids; empty where a task has none."""
        return []

    def check(self, rows: Rows, examples: Sequence[_E], labels: Labels) -> None:
        """Raises DataError if an example has a class that is none of `labels`."""

    def require(self) -> None:  # a task may well need nothing
        """Raises MissingDependencyError if the package is missing that computes the metric."""

    @abstractmethod
    def features(self, tokenizer: Any, examples: Sequence[_E], labels: Labels, max_length: int) -> Features:
        """What a model is given for each example, cut at `max_length` tokens: input_ids, attention_mask, labels, …"""

    @abstractmethod
    def scores(
        self, tokenizer: Any, examples: Sequence[_E], labels: Labels, features: Features, predicted: np.ndarray
    ) -> dict[str, float]:
        """Every metric in percent; `predicted`: classes [N], classes of tokens [N, L] or generated ids [N, L]."""


class Classification(Task[Labelled]):
    """One class for a text, or for a pair of texts; columns: the texts, then the label."""

    model_class = "AutoModelForSequenceClassification"

    def __init__(self, columns: tuple[str, ...], metric: str) -> None:
        self.columns, self.metric = columns, metric

    def examples(self, rows: Rows) -> list[Labelled]:
        last = len(self.columns) - 1
        return [
            Labelled(rows.text(row, 0), rows.text(row, 1) if last == 2 else None, rows.label(row, last))
            for row in range(len(rows.values))
        ]

    def labels(self, train: Sequence[Labelled]) -> list[str]:
        return _classes({each.label for each in train})

    def check(self, rows: Rows, examples: Sequence[Labelled], labels: Labels) -> None:
        for row, each in enumerate(examples):
            if each.label not in labels:
                raise rows.error(row, len(self.columns) - 1, "has a class that the training data lacks")

    def features(self, tokenizer: Any, examples: Sequence[Labelled], labels: Labels, max_length: int) -> Features:
        pairs = [each.pair for each in examples] if len(self.columns) == 3 else None
        texts = [each.text for each in examples]
        encoded = _rows_of(tokenizer(texts, pairs, truncation=True, max_length=max_length))
        ids = {label: place for place, label in enumerate(labels)}
        return [{**inputs, "labels": ids[each.label]} for inputs, each in zip(encoded, examples, strict=True)]

    def scores(
        self,
        tokenizer: Any,
        examples: Sequence[Labelled],
        labels: Labels,
        features: Features,
        predicted: np.ndarray,
    ) -> dict[str, float]:
        classes, true = predicted.tolist(), [each["labels"] for each in features]
        return {"accuracy": accuracy(classes, true), "macro F1": macro_f1(classes, true)}


class Tagging(Task[Tagged]):
    """A tag for every token, which the first of a token's subwords bears."""

    columns = ("tokens", "tags")
    metric = "entity F1"
    model_class = "AutoModelForTokenClassification"

    def examples(self, rows: Rows) -> list[Tagged]:
        found = [Tagged(rows.texts(row, 0), rows.texts(row, 1)) for row in range(len(rows.values))]
        for row, each in enumerate(found):
            if len(each.tokens) != len(each.tags):
                raise rows.error(row, 1, f"has {len(each.tags)} tags for {len(each.tokens)} tokens")
        return found

    def labels(self, train: Sequence[Tagged]) -> list[str]:
        return _classes({tag for each in train for tag in each.tags} | {"O"})

    def check(self, rows: Rows, examples: Sequence[Tagged], labels: Labels) -> None:
        known = set(labels)
        for row, each in enumerate(examples):
            if not known.issuperset(each.tags):
                raise rows.error(row, 1, "has a tag that the training data lacks")

    def features(self, tokenizer: Any, examples: Sequence[Tagged], labels: Labels, max_length: int) -> Features:
        encoded = tokenizer(
            [each.tokens for each in examples], is_split_into_words=True, truncation=True, max_length=max_length
        )
        ids = {label: place for place, label in enumerate(labels)}
        rows = _rows_of(encoded)
        for place, (inputs, each) in enumerate(zip(rows, examples, strict=True)):
            # The words that have a subword within max_length; the collator drops what no model takes.
            inputs["words"], inputs["labels"] = [], []
            for word in encoded.word_ids(place):
                first = word is not None and word not in inputs["words"][-1:]
                inputs["labels"].append(ids[each.tags[word]] if first else IGNORED)
                if first:
                    inputs["words"].append(word)
        return rows

    def scores(
        self,
        tokenizer: Any,
        examples: Sequence[Tagged],
        labels: Labels,
        features: Features,
        predicted: np.ndarray,
    ) -> dict[str, float]:
        tagged = []
        for row, inputs, each in zip(predicted, features, examples, strict=True):
            tags = ["O"] * len(each.tokens)  # also for a token that was cut off, or that the tokenizer drops
            firsts = [place for place, label in enumerate(inputs["labels"]) if label != IGNORED]
            for place, word in zip(firsts, inputs["words"], strict=True):
                tags[word] = labels[row[place]]
            tagged.append(tags)
        return entity_scores(tagged, [each.tags for each in examples])


class Generation(Task[Rewritten]):
    """A text made of a text: a summary or a translation."""

    model_class = "AutoModelForSeq2SeqLM"
    generates = True

    def __init__(self, columns: tuple[str, ...], metric: str, measure: Measure) -> None:
        self.columns, self.metric, self._measure = columns, metric, measure

    def require(self) -> None:
        self._measure(["a text"], ["a text"])

    def examples(self, rows: Rows) -> list[Rewritten]:
        return [Rewritten(rows.text(row, 0), rows.text(row, 1)) for row in range(len(rows.values))]

    def features(self, tokenizer: Any, examples: Sequence[Rewritten], labels: Labels, max_length: int) -> Features:
        encoded = tokenizer([each.source for each in examples], truncation=True, max_length=max_length)
        targets = tokenizer(text_target=[each.target for each in examples], truncation=True, max_length=max_length)[
            "input_ids"
        ]
        return [{**inputs, "labels": target} for inputs, target in zip(_rows_of(encoded), targets, strict=True)]

    def scores(
        self,
        tokenizer: Any,
        examples: Sequence[Rewritten],
        labels: Labels,
        features: Features,
        predicted: np.ndarray,
    ) -> dict[str, float]:
        texts = tokenizer.batch_decode(predicted, skip_special_tokens=True)
        return self._measure([text.strip() for text in texts], [each.target for each in examples])


TASKS: dict[str, Task[Any]] = {
    "classification": Classification(("sentence", "label"), "accuracy"),
    "tagging": Tagging(),
    "pairs": Classification(("premise", "hypothesis", "label"), "macro F1"),
    "summarisation": Generation(("document", "summary"), "ROUGE-L", rouge),
    "translation": Generation(("source", "target"), "BLEU", bleu),
}


def _classes(names: set[str]) -> list[str]:
    """Names in the order of their ids: numbers by their value, texts by the alphabet."""
    if len(names) > _MAX_LABELS:
        raise DataError(f"the label column has {len(names):,} different values: is it the right one?")
    return sorted(names, key=lambda name: (not name.isdecimal(), int(name) if name.isdecimal() else 0, name))


def _rows_of(encoded: Any) -> Features:
    """A tokenizer's lists by field as a dict for each example."""
    return [dict(zip(encoded, values, strict=True)) for values in zip(*encoded.values(), strict=True)]
