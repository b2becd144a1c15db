"""The metrics against values worked out by hand, or published."""

from __future__ import annotations

import pytest

from privacy.errors import MissingDependencyError
from privacy.passkey.metrics import accuracy, bleu, entities, entity_scores, macro_f1, rouge


def test_accuracy_is_the_share_of_right_answers() -> None:
    assert accuracy([0, 1, 1, 2], [0, 1, 2, 2]) == 75.0


def test_macro_f1_weighs_every_class_alike() -> None:
    # Of class 0, 3 of 4 are found and nothing else is taken for it: F1 6/7. Class 1: F1 2/3. Class 2: never found.
    assert macro_f1([0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 1, 1]) == pytest.approx(100 * (6 / 7 + 4 / 5) / 2)
    assert macro_f1([0, 0], [0, 2]) == pytest.approx(100 * (2 / 3 + 0) / 2)


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        ("O B-PER I-PER O", [("PER", 1, 3)]),
        ("B-PER B-PER", [("PER", 0, 1), ("PER", 1, 2)]),
        ("I-PER I-PER B-PER", [("PER", 0, 2), ("PER", 2, 3)]),  # IOB1, as CoNLL-2003 was published
        ("B-PER I-LOC", [("PER", 0, 1), ("LOC", 1, 2)]),
        ("O I-LOC O", [("LOC", 1, 2)]),
        ("B-ORG I-ORG E-ORG S-ORG O", [("ORG", 0, 3), ("ORG", 3, 4)]),
        ("B-ORG L-ORG I-ORG U-PER", [("ORG", 0, 2), ("ORG", 2, 3), ("PER", 3, 4)]),
        ("B-NEW-YORK I-NEW-YORK", [("NEW-YORK", 0, 2)]),
        ("O O", []),
        ("", []),
    ],
)
def test_entities_are_those_of_conlleval(tags: str, found: list[tuple[str, int, int]]) -> None:
    assert list(entities(tags.split())) == found


def test_an_entity_counts_only_where_type_and_both_ends_are_right() -> None:
    true = [["B-PER", "I-PER", "O", "B-LOC", "O", "B-ORG"], ["B-PER", "O"]]
    predicted = [["B-PER", "I-PER", "O", "B-ORG", "O", "O"], ["B-PER", "I-PER"]]
    # Right: one person. Found: three. Wanted: four.
    scores = entity_scores(predicted, true)
    assert scores["entity precision"] == pytest.approx(100 / 3)
    assert scores["entity recall"] == pytest.approx(100 / 4)
    assert scores["entity F1"] == pytest.approx(100 * 2 / 7)


def test_no_entity_found_is_an_f1_of_zero() -> None:
    assert entity_scores([["O"]], [["B-PER"]])["entity F1"] == 0.0


def test_rouge_of_a_known_pair() -> None:
    pytest.importorskip("rouge_score", reason="needs rouge-score")
    # Stemmed, five words of six and of seven are shared, in the same order, and three word pairs of five and of six.
    scores = rouge(["the cat sat on the mat"], ["the cats sat on a big mat"])
    assert scores["ROUGE-1"] == pytest.approx(100 * 2 * 5 / (6 + 7))
    assert scores["ROUGE-2"] == pytest.approx(100 * 2 * 3 / (5 + 6))
    assert scores["ROUGE-L"] == pytest.approx(100 * 2 * 5 / (6 + 7))


def test_bleu_of_a_known_corpus() -> None:
    pytest.importorskip("sacrebleu", reason="needs sacrebleu")
    assert bleu(["the cat is on the mat"], ["the cat is on the mat"])["BLEU"] == pytest.approx(100.0)
    # n-gram precisions 5/6, 4/5, 3/4 and 2/3 multiply to 1/3; the lengths are equal.
    assert bleu(["the cat is on the rug"], ["the cat is on the mat"])["BLEU"] == pytest.approx(100 * (1 / 3) ** 0.25)


@pytest.mark.parametrize(("metric", "module"), [(rouge, "rouge_score.rouge_scorer"), (bleu, "sacrebleu")])
def test_a_missing_package_is_named(metric: object, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(MissingDependencyError, match="pip install"):
        metric(["a"], ["a"])  # type: ignore[operator]
