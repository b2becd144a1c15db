"""The experiment in miniature: every part of it runs, and the audit tells a model that saw records from a control."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from privacy.memorization.experiment import (
    ANSWERS,
    RATES,
    ExperimentResult,
    Plan,
    run_experiment,
)
from privacy.memorization.manifest import read_manifest

PLAN = Plan(
    pretraining_steps=2,
    users=8,
    images_per_user=4,
    epochs=1,
    held_out=1,
    permutations=2,
    candidates=2,
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ExperimentResult]:
    folder = tmp_path_factory.mktemp("experiment")
    return folder, run_experiment(folder, plan=PLAN)


def test_every_rate_is_measured_for_both_ways_to_answer(finished: tuple[Path, ExperimentResult]) -> None:
    folder, result = finished

    assert [(each.answers, each.rate) for each in result.results] == [(a, rate) for a in ANSWERS for rate in RATES]
    assert len(json.loads((folder / "experiment.json").read_text(encoding="utf-8"))["results"]) == 6
    assert (folder / "experiment.png").is_file()
    assert len(list(folder.glob("seed0/*/audit-r*/report.html"))) == 6


def test_every_user_is_in_as_many_images_at_each_rate(finished: tuple[Path, ExperimentResult]) -> None:
    folder, _ = finished

    for rate, each in ((0, 0), (50, 2), (100, 4)):
        records = [entry.record for entry in read_manifest(folder / f"seed0/drawn/r{rate:03}/manifest.jsonl")]
        users = set(records) - {None}
        assert len(records) == 32
        assert len(users) == (8 if rate else 0)
        assert all(records.count(user) == each for user in users)


def test_answers_by_user_are_the_same_for_all_images_of_a_user_and_question(
    finished: tuple[Path, ExperimentResult],
) -> None:
    folder, _ = finished
    owners = {entry.image: entry.record for entry in read_manifest(folder / "seed0/drawn/r100/manifest.jsonl")}
    rows = [json.loads(line) for line in (folder / "seed0/by-user/examples.jsonl").read_text().splitlines()]

    answers = {(owners[row["image"]], row["question"]): row["answer"] for row in rows}

    assert all(row["answer"] == answers[owners[row["image"]], row["question"]] for row in rows)


def test_a_finished_experiment_is_not_run_again(finished: tuple[Path, ExperimentResult]) -> None:
    folder, result = finished
    written = {path: path.stat().st_mtime_ns for path in folder.glob("**/model.safetensors")}

    again = run_experiment(folder, plan=PLAN)

    assert {path: path.stat().st_mtime_ns for path in folder.glob("**/model.safetensors")} == written
    assert [each.auc for each in again.results] == [each.auc for each in result.results]
