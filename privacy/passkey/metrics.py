"""What fine-tuned models are measured by; every figure is in percent, from 0 to 100."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import import_module

from privacy.errors import MissingDependencyError

_INSIDE = ("I", "E", "L")
_LAST = ("E", "S", "L", "U")

Entity = tuple[str, int, int]
"""A type, the place of the first token and the place after the last one."""


def accuracy(predicted: Sequence[int], true: Sequence[int]) -> float:
    """The share of predictions that are right."""
    return 100 * sum(p == t for p, t in zip(predicted, true, strict=True)) / len(true)


def macro_f1(predicted: Sequence[int], true: Sequence[int]) -> float:
    """The mean of the classes' F1 over the classes that are predicted or true."""
    from sklearn.metrics import f1_score

    return 100 * float(f1_score(true, predicted, average="macro", zero_division=0))


def entities(tags: Sequence[str]) -> Iterator[Entity]:
    """The entities of a tagged sentence, as CoNLL's `conlleval` finds them (Tjong Kim Sang & De Meulder, 2003).

    IOB1, IOB2 and the schemes with tags for single and last tokens (IOBES, BILOU) are read alike: an entity goes on
    while a tag continues one of the same type, so that a stray I- opens an entity of its own.
    """
    kind, start, closed = "", 0, True
    for place, tag in enumerate([*tags, "O"]):
        prefix, _, name = tag.partition("-")
        goes_on = not closed and prefix in _INSIDE and name == kind
        if not goes_on:
            if kind:
                yield kind, start, place
            kind, start = ("" if tag == "O" else name), place
        closed = prefix in _LAST


def entity_scores(predicted: Sequence[Sequence[str]], true: Sequence[Sequence[str]]) -> dict[str, float]:
    """CoNLL's precision, recall and F1: an entity counts where its type, first and last token are all right.

    predicted, true: the tags of each sentence.
    """
    found = right = wanted = 0
    for guess, truth in zip(predicted, true, strict=True):
        guessed, correct = set(entities(guess)), set(entities(truth))
        found, wanted, right = found + len(guessed), wanted + len(correct), right + len(guessed & correct)
    return {
        "entity F1": 200 * right / (found + wanted) if right else 0.0,
        "entity precision": 100 * right / found if right else 0.0,
        "entity recall": 100 * right / wanted if right else 0.0,
    }


def rouge(predicted: Sequence[str], true: Sequence[str]) -> dict[str, float]:
    """The mean F1 of ROUGE-1, ROUGE-2 and ROUGE-L (Lin, 2004) with Porter's stemmer, by Google's `rouge_score`.

    Raises:
        MissingDependencyError: the package is missing.
    """
    try:
        scoring = import_module("rouge_score.rouge_scorer")
    except ImportError as error:
        raise MissingDependencyError("ROUGE needs rouge_score: pip install rouge-score") from error
    names = {"ROUGE-1": "rouge1", "ROUGE-2": "rouge2", "ROUGE-L": "rougeL"}
    scorer = scoring.RougeScorer(list(names.values()), use_stemmer=True)
    scores = [scorer.score(truth, guess) for guess, truth in zip(predicted, true, strict=True)]
    return {name: 100 * sum(each[key].fmeasure for each in scores) / len(scores) for name, key in names.items()}


def bleu(predicted: Sequence[str], true: Sequence[str]) -> dict[str, float]:
    """Corpus BLEU (Papineni et al., 2002) with one reference, by `sacrebleu` and with its default tokenization.

    Raises:
        MissingDependencyError: the package is missing.
    """
    try:
        sacrebleu = import_module("sacrebleu")
    except ImportError as error:
        raise MissingDependencyError("BLEU needs sacrebleu: pip install sacrebleu") from error
    return {"BLEU": float(sacrebleu.corpus_bleu(list(predicted), [list(true)]).score)}
