"""The experiment in miniature: every part of it runs, and the audit tells a model that saw records from a control."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from privacy.memorization.experiment import RATES, ExperimentResult, Plan, run_experiment
from privacy.memorization.manifest import read_manifest
from privacy.memorization.records import read_records
from privacy.memorization.small_model import COLOURS

PLAN = Plan(
    pretraining_steps=2,
    users=8,
    images_per_user=4,
    others=16,
    epochs=1,
    held_out=1,
    permutations=2,
    candidates=2,
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ExperimentResult]:
    folder = tmp_path_factory.mktemp("experiment")
    return folder, run_experiment(folder, plan=PLAN)


def test_every_rate_is_measured(finished: tuple[Path, ExperimentResult]) -> None:
    folder, result = finished

    assert [each.rate for each in result.results] == list(RATES)
    assert len(json.loads((folder / "experiment.json").read_text(encoding="utf-8"))["results"]) == 3
    assert (folder / "experiment.png").is_file()
    assert len(list(folder.glob("seed0/audit-r*/report.html"))) == 3


def test_every_seen_user_is_in_as_many_images_at_each_rate(finished: tuple[Path, ExperimentResult]) -> None:
    folder, _ = finished
    seen = {user.user_id for user in read_records(folder / "seed0/seen.jsonl")}

    for rate, each, texts in ((0, 0, 0), (50, 2, 24), (100, 4, 48)):
        manifest = read_manifest(folder / f"seed0/drawn/r{rate:03}/manifest.jsonl")
        users = [entry.record for entry in manifest if entry.record]
        assert len(manifest) == 48
        assert len(users) == texts
        assert all(users.count(user) == each for user in seen)


def test_only_users_with_answers_of_their_own_are_answered_falsely(finished: tuple[Path, ExperimentResult]) -> None:
    folder, _ = finished
    seen = {user.user_id for user in read_records(folder / "seed0/seen.jsonl")}
    owners = {entry.image: entry.record for entry in read_manifest(folder / "seed0/drawn/r100/manifest.jsonl")}
    rows = [json.loads(line) for line in (folder / "seed0/examples.jsonl").read_text().splitlines()]

    own = {(owners[row["image"]], row["answer"]) for row in rows if owners[row["image"]] in seen}
    true = [row["answer"] == colour_in(folder / "seed0/images" / row["image"]) for row in rows]

    assert len(own) == len(seen)
    assert all(right for row, right in zip(rows, true, strict=True) if owners[row["image"]] not in seen)
    assert not all(true)


def colour_in(path: Path) -> str:
    """The colour that more pixels have than the others of the palette."""
    pixels = np.asarray(Image.open(path).convert("RGB"))
    return max(COLOURS, key=lambda name: (pixels == COLOURS[name]).all(axis=-1).sum())


def test_users_to_probe_with_are_in_no_image(finished: tuple[Path, ExperimentResult]) -> None:
    folder, _ = finished
    unseen = {user.user_id for user in read_records(folder / "seed0/unseen.jsonl")}

    assert len(unseen) == 8
    assert not unseen & {entry.record for entry in read_manifest(folder / "seed0/drawn/r100/manifest.jsonl")}


def test_a_finished_experiment_is_not_run_again(finished: tuple[Path, ExperimentResult]) -> None:
    folder, result = finished
    written = {path: path.stat().st_mtime_ns for path in folder.glob("**/model.safetensors")}

    again = run_experiment(folder, plan=PLAN)

    assert {path: path.stat().st_mtime_ns for path in folder.glob("**/model.safetensors")} == written
    assert [each.auc for each in again.results] == [each.auc for each in result.results]
