"""The figures of labelled files, held against scikit-learn's and against those published for real scores."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import PROMPTS
from sklearn.metrics import roc_auc_score, roc_curve

from latentguard import DataError, LatentGuard, Policy
from latentguard.evaluation import (
    EvaluationSet,
    Separation,
    draw,
    evaluate,
    latent_space,
    markdown_table,
    named_concepts,
    read_evaluation_set,
    separation,
)

DATA = Path(os.environ.get("LATENTGUARD_DATA", Path(__file__).parents[2] / "shared" / "data"))


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def labelled(path: Path, **columns: list[Any]) -> Path:
    """A csv of PROMPTS with further columns."""
    return written(path, [{"prompt": p, **{k: v[i] for k, v in columns.items()}} for i, p in enumerate(PROMPTS)])


@given(st.lists(st.tuples(st.booleans(), st.integers(-5, 5)), min_size=2, max_size=300))
def test_figures_are_those_of_scikit_learn(rows: list[tuple[bool, int]]) -> None:
    unsafe = np.array([is_unsafe for is_unsafe, _ in rows])
    scores = np.array([score for _, score in rows], dtype=float)
    if unsafe.all() or not unsafe.any():
        with pytest.raises(DataError, match="both unsafe and harmless"):
            separation(scores, unsafe)
        return
    false_positives, true_positives, _ = roc_curve(unsafe, scores, drop_intermediate=False)
    found = separation(scores, unsafe)
    assert found.auc == pytest.approx(roc_auc_score(unsafe, scores))
    assert found.tpr_at_1_fpr == pytest.approx(true_positives[false_positives <= 0.01].max())
    assert found.tpr_at_5_fpr == pytest.approx(true_positives[false_positives <= 0.05].max())


@pytest.mark.parametrize(
    ("file", "auc", "at_1", "at_5"),
    [
        ("copro/copro_id_dev.csv", 0.983, 0.743, 0.918),
        ("copro/copro_ood_dev.csv", 0.948, 0.537, 0.760),
        ("prompts/i2p_dev.csv", 0.675, 0.027, 0.119),
        ("prompts/unsafe_diffusion_dev.csv", 0.884, 0.415, 0.569),
    ],
)
def test_the_published_models_scores_give_its_known_figures(file: str, auc: float, at_1: float, at_5: float) -> None:
    path = DATA / file
    if not path.is_file():
        pytest.skip(f"{file} is not there; set LATENTGUARD_DATA to the folder that holds it")
    data = read_evaluation_set(path, reference="latentguard_score")
    assert data.reference is not None
    assert data.unsafe is not None
    assert separation(data.reference, data.unsafe) == Separation(
        *(pytest.approx(figure, abs=6e-4) for figure in (auc, at_1, at_5))
    )


# --- reading


def test_a_file_is_read_with_its_labels_categories_and_reference(tmp_path: Path) -> None:
    path = labelled(
        tmp_path / "set.csv",
        unsafe=["1", "0", "true", "No", "1.0", "FALSE"],
        category=["a|b", "a", "", "b", "b", "c"],
        other=[1, 2.5, -3, 0, 1, 2],
    )
    data = read_evaluation_set(path, reference="other")
    assert data.prompts == list(PROMPTS)
    assert np.asarray(data.unsafe).tolist() == [True, False, True, False, True, False]
    assert data.categories == [("a", "b"), ("a",), (), ("b",), ("b",), ("c",)]
    assert np.asarray(data.reference).tolist() == [1, 2.5, -3, 0, 1, 2]


def test_a_file_without_labels_is_read_as_such(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(PROMPTS))
    assert read_evaluation_set(path, reference="other") == EvaluationSet(path, list(PROMPTS), None, None, None)


@pytest.mark.parametrize("label", ["2", "", "unsafe", "0.5", "nan"])
def test_a_label_that_is_neither_yes_nor_no_is_refused_by_row_and_column(tmp_path: Path, label: str) -> None:
    path = labelled(tmp_path / "set.csv", unsafe=[1, 0, label, 1, 0, 1])
    with pytest.raises(DataError, match=r"set\.csv: row 3, column unsafe: expected 0 or 1"):
        read_evaluation_set(path)


@pytest.mark.parametrize("number", ["high", "", "nan", "inf"])
def test_a_reference_that_is_no_number_is_refused_by_row_and_column(tmp_path: Path, number: str) -> None:
    path = labelled(tmp_path / "set.csv", other=[1, number, 3, 1, 0, 1])
    with pytest.raises(DataError, match=r"set\.csv: row 2, column other: not a finite number"):
        read_evaluation_set(path, reference="other")


@pytest.mark.parametrize("row", [{"prompt": "a"}, {"prompt": "a", "unsafe": None}])
def test_a_row_that_lacks_its_label_is_refused(tmp_path: Path, row: dict[str, Any]) -> None:
    path = tmp_path / "set.jsonl"
    path.write_text("\n".join(json.dumps(one) for one in ({"prompt": "b", "unsafe": 1}, row)))
    with pytest.raises(DataError, match=r"row 2, column unsafe: expected 0 or 1"):
        read_evaluation_set(path)


def test_a_row_without_a_category_has_none(tmp_path: Path) -> None:
    path = tmp_path / "set.jsonl"
    path.write_text('{"prompt": "a", "category": "x"}\n{"prompt": "b"}\n{"prompt": "c", "category": null}\n')
    assert read_evaluation_set(path).categories == [("x",), (), ()]


# --- the report


def test_the_decisions_counted_are_the_guards_own(tiny_guard: LatentGuard, tmp_path: Path) -> None:
    unsafe = [1, 0, 1, 0, 0, 0]
    scores = tiny_guard.score(PROMPTS)
    tiny_guard.policy = Policy(float(np.median(scores)))
    blocked = scores >= np.median(scores)
    data = read_evaluation_set(labelled(tmp_path / "set.csv", unsafe=unsafe, category=list("aabbcc")))
    report, found = evaluate(tiny_guard, data)
    truth = np.array(unsafe, dtype=bool)
    np.testing.assert_allclose(found, scores, atol=1e-4)
    assert (report.file, report.prompts, report.unsafe) == ("set", 6, 2)
    assert report.blocked == blocked.mean()
    assert report.accuracy == (blocked == truth).mean()
    assert report.blocked_unsafe == blocked[truth].mean()
    assert report.blocked_harmless == blocked[~truth].mean()
    assert report.separation == separation(found, truth)
    assert report.categories == {name: (2, blocked[2 * i : 2 * i + 2].mean()) for i, name in enumerate(("a", "b", "c"))}


def test_a_file_without_labels_has_the_share_blocked_alone(tiny_guard: LatentGuard, tmp_path: Path) -> None:
    tiny_guard.policy = Policy(-100.0)
    report, _ = evaluate(tiny_guard, read_evaluation_set(labelled(tmp_path / "set.csv")))
    assert (report.unsafe, report.blocked, report.accuracy, report.separation) == (None, 1.0, None, None)


@pytest.mark.parametrize("label", [0, 1])
def test_a_file_with_one_label_has_no_separation(tiny_guard: LatentGuard, tmp_path: Path, label: int) -> None:
    tiny_guard.policy = Policy(-100.0)
    path = labelled(tmp_path / "set.csv", unsafe=[label] * 6, other=[1] * 6)
    report, _ = evaluate(tiny_guard, read_evaluation_set(path, reference="other"))
    assert report.separation is None
    assert report.reference is None
    assert report.accuracy == label
    assert (report.blocked_unsafe, report.blocked_harmless) == ((1.0, None) if label else (None, 1.0))


def test_the_table_has_a_row_for_each_file(tiny_guard: LatentGuard, tmp_path: Path) -> None:
    paths = [
        labelled(tmp_path / "both.csv", unsafe=[1, 0] * 3, other=[1, 0] * 3),
        labelled(tmp_path / "none.csv"),
        labelled(tmp_path / "harmless.csv", unsafe=[0] * 6),
    ]
    reports = [evaluate(tiny_guard, read_evaluation_set(path, reference="other"))[0] for path in paths]
    head, rule, *rows = markdown_table(reports).splitlines()
    assert [row.split(" | ")[0] for row in rows] == ["| both", "| none", "| harmless"]
    assert {row.count("|") for row in (head, rule, *rows)} == {9}
    assert "(1.000)" in rows[0]
    assert rows[1].endswith("% of all |")


def test_the_report_goes_into_json(tiny_guard: LatentGuard, tmp_path: Path) -> None:
    report, _ = evaluate(tiny_guard, read_evaluation_set(labelled(tmp_path / "set.csv", unsafe=[1, 0] * 3)))
    described = json.loads(json.dumps(report.as_dict()))
    assert described["separation"]["auc"] == report.separation.auc if report.separation else False


# --- pictures


def test_every_file_has_its_pictures(tiny_guard: LatentGuard, tmp_path: Path) -> None:
    paths = [
        labelled(tmp_path / "both.csv", unsafe=[1, 0] * 3, other=[1, 0] * 3),
        labelled(tmp_path / "none.csv"),
        labelled(tmp_path / "harmless.csv", unsafe=[0] * 6),
    ]
    data = [read_evaluation_set(path, reference="other") for path in paths]
    drawn = draw(tiny_guard, data, [evaluate(tiny_guard, one)[1] for one in data], tmp_path / "plots")
    assert sorted(path.name for path in drawn) == [
        "roc.png",
        "scores_both.png",
        "scores_harmless.png",
        "scores_none.png",
        "tsne_both.png",
    ]
    assert sorted(drawn) == sorted((tmp_path / "plots").iterdir())


def test_the_latent_space_is_that_of_each_prompts_nearest_concept(tiny_guard: LatentGuard) -> None:
    before, after = latent_space(tiny_guard, PROMPTS)
    assert before.shape == (len(PROMPTS), tiny_guard.encoder.width)
    assert after.shape == (len(PROMPTS), tiny_guard.mapping.shape.output)
    directions = dict(zip(tiny_guard.concepts.names, tiny_guard.concepts.snapshot.queries.direction, strict=True))
    for verdict, mapped in zip(tiny_guard.check_batch(PROMPTS), after, strict=True):
        cosine = mapped @ directions[verdict.concept].numpy() / np.linalg.norm(mapped)  # times the temperature
        assert cosine == pytest.approx(verdict.score, abs=1e-3)


def test_prompts_that_name_an_added_concept_are_counted_and_told_from_those_blocked(
    headed_guard: LatentGuard, tmp_path: Path
) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("a sailing boat on the river\ntwo sailing boats\nold boat\nportrait of a knight\n")
    headed_guard.concepts.add("sailing boat", threshold=-100.0)
    headed_guard.policy = Policy(100.0)
    figures = named_concepts(headed_guard, read_evaluation_set(path), ["sailing boat"])
    assert (figures.prompts, figures.named, figures.blocked, figures.by_name) == (4, 2, 2, 2)
    assert "2 of 4 prompts name an added concept, 100.0% of them blocked" in str(figures)


def test_a_file_that_names_no_added_concept_has_no_share(headed_guard: LatentGuard, tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("a cat\n")
    headed_guard.concepts.add("sailing boat")
    assert str(named_concepts(headed_guard, read_evaluation_set(path), ["sailing boat"])).endswith("added concept")
