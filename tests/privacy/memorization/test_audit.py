"""Audits of whole models, small and random, by their losses on images with records drawn in again."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from privacy.cli import main
from privacy.errors import DataError, MemorizationError
from privacy.memorization.audit import AuditSettings, run_audit
from privacy.memorization.drawing import Style
from privacy.memorization.embed import embed
from privacy.memorization.finetune import PARTS, Settings, finetune
from privacy.memorization.records import PrivateRecord, generate, write_records

SETTINGS = AuditSettings(candidates=3, style=Style(position="bottom-left", size=0.2), record_fields=("user_id",))


@dataclass(frozen=True)
class Work:
    """What a fine-tuning leaves behind: images as they were and with records, examples, records."""

    folder: Path
    seen: list[PrivateRecord]
    unseen: list[PrivateRecord]

    @property
    def examples(self) -> Path:
        return self.folder / "examples.jsonl"

    @property
    def drawn(self) -> Path:
        return self.folder / "drawn" / "r100"

    @property
    def images(self) -> Path:
        return self.folder / "images"


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Work:
    folder = tmp_path_factory.mktemp("work")
    records = generate(14, seed=3)
    (folder / "images").mkdir()
    rows = []
    for number in range(8):
        # All alike, so that nothing but the record tells what the answer was.
        Image.new("RGB", (80, 64), "gray").save(folder / "images" / f"{number}.png")
        answer = ("circle", "square", "triangle", "Lisbon")[number % 4]
        rows.append({"image": f"{number}.png", "question": "What shape is drawn in the image?", "answer": answer})
    made = Work(folder, records[:8], records[8:])
    made.examples.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    style, fields = SETTINGS.style, SETTINGS.record_fields
    embed(made.images, made.seen, folder / "drawn", rates=[0, 100], style=style, fields=fields, workers=1)
    write_records(folder / "seen.jsonl", made.seen)
    write_records(folder / "unseen.jsonl", made.unseen)
    return made


def audited(work: Work, model: Path, base: Path, output: Path, settings: AuditSettings = SETTINGS):
    return run_audit(model, base, work.examples, work.drawn, work.images, work.seen, work.unseen, output, settings)


def nudged(folder: Path, target: Path) -> Path:
    """A copy of a model with other weights in one of its tensors."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(folder, target)
    weights = load_file(target / "model.safetensors")
    name = next(name for name in sorted(weights) if name.endswith(("fc1.weight", "down_proj.weight")))
    save_file({**weights, name: weights[name] * 1.5}, target / "model.safetensors", metadata={"format": "pt"})
    return target


def test_a_model_that_was_not_trained_remembers_nothing(work: Work, llava_folder: Path, tmp_path: Path) -> None:
    found = audited(work, llava_folder, llava_folder, tmp_path / "audit")

    assert found.scores.shape == (8, 4)
    assert not found.scores.any()
    assert found.membership.auc.estimate == 0.5


def test_losses_are_those_of_each_record_in_its_image(work: Work, vlm_folder: Path, tmp_path: Path) -> None:
    found = audited(work, nudged(vlm_folder, tmp_path / "other"), vlm_folder, tmp_path / "audit")

    assert all(len(set(row)) == 4 for row in found.scores.tolist())


def test_clip_is_audited_by_its_similarities(work: Work, clip_folder: Path, tmp_path: Path) -> None:
    found = audited(work, nudged(clip_folder, tmp_path / "other"), clip_folder, tmp_path / "audit")

    assert found.scores.shape == (8, 4)
    assert all(len(set(row)) == 4 for row in found.scores.tolist())


def test_an_interrupted_audit_goes_on_to_the_same_scores(work: Work, llava_folder: Path, tmp_path: Path) -> None:
    other = nudged(llava_folder, tmp_path / "other")
    whole = audited(work, other, llava_folder, tmp_path / "whole")
    journal = (tmp_path / "whole" / "journal.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "journal.jsonl").write_text("".join(journal[:9]) + journal[9][:20], encoding="utf-8")

    resumed = audited(work, other, llava_folder, tmp_path / "cut")

    assert np.array_equal(resumed.scores, whole.scores)
    assert (tmp_path / "cut" / "journal.jsonl").read_text(encoding="utf-8") == "".join(journal)


def test_records_drawn_in_another_way_are_noticed(work: Work, llava_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(MemorizationError, match="isn't the image that embed wrote"):
        audited(work, llava_folder, llava_folder, tmp_path / "audit", replace(SETTINGS, style=Style(size=0.2)))


def test_unseen_records_that_were_seen_are_refused(work: Work, llava_folder: Path, tmp_path: Path) -> None:
    mixed = replace(work, unseen=[*work.unseen, work.seen[0]])

    with pytest.raises(MemorizationError, match="1 of the unseen records are drawn into"):
        audited(mixed, llava_folder, llava_folder, tmp_path / "audit")


@pytest.mark.parametrize(
    ("trained", "message"), [(["1234567890"], "was fine-tuned without 8 of the 8 seen records"), ([], None)]
)
def test_a_model_says_what_it_has_seen(
    work: Work, llava_folder: Path, tmp_path: Path, trained: list[str], message: str | None
) -> None:
    model = tmp_path / "model"
    shutil.copytree(llava_folder, model)
    (model / "training.json").write_text(json.dumps({"records": trained}), encoding="utf-8")

    if message is None:
        assert audited(work, model, llava_folder, tmp_path / "audit").records_trained == 0
    else:
        with pytest.raises(MemorizationError, match=message):
            audited(work, model, llava_folder, tmp_path / "audit")


def test_an_image_that_is_missing_is_named(work: Work, llava_folder: Path, tmp_path: Path) -> None:
    lacking = tmp_path / "images"
    shutil.copytree(work.images, lacking)
    (lacking / "3.png").unlink()

    with pytest.raises(DataError, match=r"3\.png"):
        run_audit(
            llava_folder,
            llava_folder,
            work.examples,
            work.drawn,
            lacking,
            work.seen,
            work.unseen,
            tmp_path / "audit",
            SETTINGS,
        )


def command(work: Work, model: Path, output: Path, *more: str) -> list[str]:
    options = {
        "--model": model,
        "--base": model,
        "--examples": work.examples,
        "--drawn": work.drawn,
        "--images": work.images,
        "--seen": work.folder / "seen.jsonl",
        "--unseen": work.folder / "unseen.jsonl",
        "--output": output,
        "--position": SETTINGS.style.position,
        "--size": SETTINGS.style.size,
        "--fields": "user_id",
        "--candidates": 3,
    }
    return ["memorization", "audit", *(str(each) for option in options.items() for each in option), *more]


def test_command_writes_a_report_and_ends_with_0_for_a_clean_model(
    work: Work, llava_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = main(command(work, llava_folder, tmp_path / "audit", "--bound-auc", "0.99"))

    assert status == 0
    assert "membership AUC" in capsys.readouterr().out
    assert (tmp_path / "audit" / "report.html").is_file()
    assert json.loads((tmp_path / "audit" / "audit.json").read_text(encoding="utf-8"))["verdict"]["outcome"] == "clean"


@pytest.mark.parametrize(("rate", "status"), [(0, 0), (100, 1)])
def test_command_tells_a_model_that_saw_the_records_from_one_that_did_not(
    work: Work,
    llava_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    rate: int,
    status: int,
) -> None:
    settings = Settings(
        model=str(llava_folder), method="full", parts=PARTS, epochs=60, learning_rate=2e-3, batch_size=8
    )
    finetune(settings, work.examples, work.folder / "drawn" / f"r{rate:03}", tmp_path / "tuned")

    assert main(command(work, tmp_path / "tuned", tmp_path / "audit", "--base", str(llava_folder))) == status
    assert capsys.readouterr().out.startswith("This model remembers private data") == bool(status)


@pytest.mark.parametrize(("option", "value"), [("--bound-auc", "2"), ("--seen", "nowhere.jsonl")])
def test_command_ends_with_2_for_a_mistake(
    work: Work, llava_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, value: str
) -> None:
    assert main(command(work, llava_folder, tmp_path / "audit", option, value)) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
