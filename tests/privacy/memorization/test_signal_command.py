"""`memorization gradients` and `memorization probe` on small models, from folders to figures."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from PIL import Image, ImageDraw

from privacy.cli import main
from privacy.memorization.compare_gradients import COMPARISONS
from privacy.memorization.drawing import Style
from privacy.memorization.embed import embed
from privacy.memorization.models import load_model
from privacy.memorization.records import PrivateRecord, generate, write_records
from privacy.memorization.views import draw_views, layout_of

COUNT = 12
CLASSES = ("circle", "square")


@pytest.fixture(scope="module")
def plain_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    rng = np.random.default_rng(0)
    for number in range(COUNT):
        image = Image.new("RGB", (96, 72), tuple(rng.integers(0, 255, 3).tolist()))
        draw = ImageDraw.Draw(image)
        (draw.ellipse, draw.rectangle)[number % 2]((30, 20, 60, 60), fill=tuple(rng.integers(0, 255, 3).tolist()))
        image.save(folder / f"{number:02}.png")
    return folder


@pytest.fixture(scope="module")
def records() -> list[PrivateRecord]:
    return generate(2 * COUNT, seed=3)


@pytest.fixture(scope="module")
def embedded(plain_images: Path, records: list[PrivateRecord], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("embedded") / "out"
    embed(plain_images, records[:COUNT], folder, rates=[0, 100], workers=1, fields=["user_id"])
    return folder


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "examples.jsonl"
    rows = [
        {"image": f"{n:02}.png", "question": "What is drawn in the image?", "answer": CLASSES[n % 2]}
        for n in range(COUNT)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def run(*arguments: object) -> int:
    return main(["memorization", *map(str, arguments)])


def gradients(model: Path, embedded: Path, examples: Path, output: Path, *more: object) -> int:
    pairs = ("--pairs", embedded / "r000", embedded / "r100")
    sizes = ("--batches", 2, "--batch-size", 3)
    return run("gradients", "--model", model, *pairs, "--examples", examples, "--output", output, *sizes, *more)


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("family", ["llava", "clip"])
def test_gradients_compares_every_layer_with_every_change(
    family: str,
    embedded: Path,
    examples: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert gradients(request.getfixturevalue(f"{family}_folder"), embedded, examples, tmp_path / "out") == 0
    rows = rows_of(tmp_path / "out" / "gradients.csv")
    assert {row["comparison"] for row in rows} == set(COMPARISONS)
    whole = {row["comparison"]: float(row["cosine"]) for row in rows if row["layer"] == "whole model"}
    assert all(-1 <= value < 0.99999 for value in whole.values())
    printed = capsys.readouterr().out
    assert all(row["layer"] in printed for row in rows)
    assert Image.open(tmp_path / "out" / "heatmap.png").format == "PNG"
    written = json.loads((tmp_path / "out" / "gradients.json").read_text())
    assert len(written["rows"]) == len(rows)


def test_gradients_of_an_adapters_folder_are_those_of_the_adapter(
    llava_folder: Path, embedded: Path, examples: Path, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    config = peft.LoraConfig(r=2, target_modules=r".*language_model.*q_proj", init_lora_weights=False)
    peft.get_peft_model(load_model(llava_folder, "cpu").model, config).save_pretrained(tmp_path / "adapter")
    assert gradients(tmp_path / "adapter", embedded, examples, tmp_path / "out") == 0
    layers = {row["layer"] for row in rows_of(tmp_path / "out" / "gradients.csv")}
    assert layers == {"language.0", "language.1", "whole model"}


def test_an_interrupted_comparison_goes_on_and_other_settings_are_refused(
    llava_folder: Path, embedded: Path, examples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert gradients(llava_folder, embedded, examples, out) == 0
    before = (out / "gradients.csv").read_text()
    journal = (out / "journal.jsonl").read_text().splitlines(keepends=True)
    first = json.loads(journal[1])
    first["cosines"] = [[0.25 if value is not None else None for value in row] for row in first["cosines"]]
    (out / "journal.jsonl").write_text(journal[0] + json.dumps(first) + "\n" + journal[2][:20])
    assert gradients(llava_folder, embedded, examples, out) == 0
    redone = (out / "journal.jsonl").read_text().splitlines(keepends=True)
    assert redone[2] == journal[2]  # the batch that was cut short is computed again, and the one before it is not
    assert (out / "gradients.csv").read_text() != before
    assert gradients(llava_folder, embedded, examples, out, "--seed", 1) == 2
    assert "begun with other settings (seed)" in capsys.readouterr().err


def test_gradients_says_in_a_line_what_is_wrong(
    llava_folder: Path, embedded: Path, examples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gradients(llava_folder, embedded, examples, tmp_path / "out", "--batch-size", 20) == 2
    assert "2 batches of 20 need 40 images" in capsys.readouterr().err
    swapped = ("--pairs", embedded / "r100", embedded / "r000")
    assert gradients(llava_folder, embedded, examples, tmp_path / "out", *swapped) == 2
    assert "none of the examples' images holds a record" in capsys.readouterr().err
    strange = tmp_path / "strange.jsonl"
    strange.write_text(examples.read_text().replace("What is drawn in the image?", "Zxcv?"), encoding="utf-8")
    assert gradients(llava_folder, embedded, strange, tmp_path / "out") == 2
    assert "give a file of paraphrases" in capsys.readouterr().err
    assert gradients(llava_folder, embedded, strange, tmp_path / "out", "--paraphrases", examples) == 0


@pytest.fixture(scope="module")
def record_files(records: list[PrivateRecord], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("records")
    write_records(folder / "seen.jsonl", records[:COUNT])
    write_records(folder / "unseen.jsonl", records[COUNT:])
    return folder / "seen.jsonl", folder / "unseen.jsonl"


def probe(models: dict[str, Path], images: Path, files: tuple[Path, Path], output: Path, *more: object) -> int:
    named = [part for name, place in models.items() for part in ("--model", f"{name}={place}")]
    few = ("--permutations", 2, "--folds", 3, "--images-per-record", 2)
    return run("probe", *named, "--images", images, "--records", *files, "--output", output, *few, *more)


@pytest.mark.parametrize(
    ("family", "design", "expected"),
    [("qwen", "new-records", ["new records"]), ("clip", "both", ["new records", "known records"])],
)
def test_probe_writes_every_layer_of_every_model_in_each_design(
    family: str,
    design: str,
    expected: list[str],
    plain_images: Path,
    record_files: tuple[Path, Path],
    tmp_path: Path,
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = request.getfixturevalue(f"{family}_folder")
    models = {"before": folder, "after": folder}
    assert probe(models, plain_images, record_files, tmp_path / "out", "--design", design) == 0
    rows = rows_of(tmp_path / "out" / "probe.csv")
    assert {(row["model"], row["design"], row["pooling"]) for row in rows} == {
        (model, design, pooling) for model in ("before", "after") for design in expected for pooling in ("mean", "last")
    }
    assert {row["layer"] for row in rows} >= {"vision.embeddings", "vision.1"}
    # The same model twice: the same accuracies, and nothing above the first.
    assert all(row["difference"] == ("" if row["model"] == "before" else "0.0") for row in rows)
    assert "6 pairs of a seen and an unseen record, 12 images" in capsys.readouterr().out
    for name in ("layers.png", "tsne.png"):
        assert Image.open(tmp_path / "out" / name).format == "PNG"
    written = json.loads((tmp_path / "out" / "probe.json").read_text())
    assert (written["pairs"], len(written["rows"])) == (6, len(rows))


def test_every_image_is_shown_with_a_seen_and_an_unseen_record_that_share_no_image_with_others(
    plain_images: Path, records: list[PrivateRecord], tmp_path: Path
) -> None:
    seen, unseen = records[:5], records[COUNT:]
    views = draw_views(plain_images, seen, unseen, tmp_path, images_per_record=2)
    assert layout_of(views).pair_count == 5
    assert {view.record for view in views if view.seen} == set(seen)
    assert {view.record for view in views if not view.seen} == set(unseen[:5])
    shown = {name: {view.image for view in views if view.seen == (name == "seen")} for name in ("seen", "unseen")}
    assert shown["seen"] == shown["unseen"] == {path.name for path in plain_images.iterdir()}
    partners: dict[PrivateRecord, set[int]] = {}
    for view in views:
        partners.setdefault(view.record, set()).add(view.pair)
    assert all(len(pairs) == 1 for pairs in partners.values())


def test_the_two_views_of_an_image_differ_where_the_text_is_and_nowhere_else(
    plain_images: Path, records: list[PrivateRecord], tmp_path: Path
) -> None:
    style = Style("0,0", 0.1)
    views = draw_views(
        plain_images, records[:2], records[2:4], tmp_path, images_per_record=2, style=style, fields=["user_id"]
    )
    one, other = (np.asarray(Image.open(view.path)) for view in views[:2])
    assert views[0].image == views[1].image
    assert (one[:30] != other[:30]).any()
    assert np.array_equal(one[30:], other[30:])


def test_labels_are_checked_against_what_the_models_were_trained_on(
    clip_folder: Path,
    plain_images: Path,
    records: list[PrivateRecord],
    record_files: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    trained = tmp_path / "trained"
    model, processor, _ = load_model(clip_folder, "cpu")
    model.save_pretrained(trained)
    processor.save_pretrained(trained)

    def tell(chosen: list[PrivateRecord]) -> None:
        (trained / "training.json").write_text(json.dumps({"records": [each.user_id for each in chosen]}))

    models: dict[str, Any] = {"before": clip_folder, "after": trained}
    tell(records[: COUNT + 1])
    assert probe(models, plain_images, record_files, tmp_path / "out") == 2
    assert "the model after was fine-tuned with 1 of the unseen records" in capsys.readouterr().err
    tell(records[:4])
    assert probe(models, plain_images, record_files, tmp_path / "out", "--design", "new-records") == 0
    assert "4 pairs" in capsys.readouterr().out


def test_probe_says_in_a_line_what_is_wrong(
    clip_folder: Path,
    qwen_folder: Path,
    plain_images: Path,
    embedded: Path,
    record_files: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    seen, _ = record_files
    models = {"model": clip_folder}
    assert probe(models, plain_images, (seen, seen), tmp_path / "a") == 2
    assert "12 records are both among the seen and the unseen ones" in capsys.readouterr().err
    assert probe(models, embedded / "r100", record_files, tmp_path / "b") == 2
    assert "hold private records already" in capsys.readouterr().err
    assert probe(models, plain_images, record_files, tmp_path / "c", "--images-per-record", 13) == 2
    assert "12 images are fewer than 13 for one record" in capsys.readouterr().err
    assert probe({"a": clip_folder, "b": qwen_folder}, plain_images, record_files, tmp_path / "d") == 2
    assert "don't have the same layers" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        run("probe", "--model", "unnamed", "--images", plain_images, "--records", seen, seen, "--output", tmp_path)
    assert stopped.value.code == 2
