"""Fine-tuning learns, stays within its part of the model, is the same each time, and goes on where it was cut off."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from memorization_data import QUESTION, SHAPES, render_images, write_questions, write_rows
from memorization_models import save_git, save_siglip

from privacy.cli import main
from privacy.errors import AuditedModelError, DataError
from privacy.memorization import collators
from privacy.memorization.answering import answer_log_likelihoods, write
from privacy.memorization.benchmarks import Question
from privacy.memorization.collators import Asked, CaptionCollator
from privacy.memorization.contrastive import info_nce
from privacy.memorization.finetune import Settings, finetune, lora_targets
from privacy.memorization.models import load_model

FAST: dict[str, Any] = {"epochs": 1, "batch_size": 4, "learning_rate": 5e-3}


@pytest.fixture(scope="module")
def captions_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A caption of its own for each of nine images."""
    rows: list[dict[str, object]] = [
        {"image": f"shapes/{number}.png", "answer": f"a {colour} {shape}"}
        for number, (colour, shape) in enumerate((c, s) for c in ("red", "green", "blue") for s in SHAPES)
    ]
    return write_rows(tmp_path_factory.mktemp("captions") / "captions.jsonl", rows)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: each.clone() for name, each in load_model(folder, "cpu").model.state_dict().items()}


def changed(before: Path, after: Path) -> set[str]:
    new = weights(after)
    return {name for name, each in weights(before).items() if not torch.equal(each, new[name])}


def test_a_multimodal_model_learns_to_write_the_answers(
    vlm_folder: Path, image_folder: Path, examples_file: Path, tmp_path: Path
) -> None:
    settings = Settings(str(vlm_folder), method="full", epochs=16, batch_size=4, learning_rate=5e-3)
    training = finetune(settings, examples_file, image_folder, tmp_path / "tuned")
    assert training.losses[-1][1] < training.losses[0][1] / 4
    # Its answer is one of the three, and ends: a random model has hundreds of words and no end.
    asked = Question("0", image_folder / "shapes/0.png", QUESTION, "circle", (), ())
    (written,) = write(load_model(tmp_path / "tuned", "cpu"), [asked], 1, 10)
    assert written.strip() in SHAPES


@pytest.mark.parametrize(
    ("part", "inside"),
    [("language", "language_model.layers."), ("vision", "vision"), ("projector", "projector")],
)
def test_an_adapter_changes_its_part_alone(
    llava_folder: Path, image_folder: Path, examples_file: Path, tmp_path: Path, part: str, inside: str
) -> None:
    finetune(Settings(str(llava_folder), parts=(part,), **FAST), examples_file, image_folder, tmp_path / "tuned")
    names = changed(llava_folder, tmp_path / "tuned")
    assert names
    assert all(inside in name for name in names)


def test_adapters_sit_beside_attention_and_mlp_of_each_family(llava_folder: Path, qwen_folder: Path) -> None:
    for folder in (llava_folder, qwen_folder):
        names = lora_targets(load_model(folder, "cpu").model, ["language"])
        kinds = {name.rpartition(".")[2] for name in names}
        assert kinds == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
        assert len(names) == 2 * len(kinds)
    vision = lora_targets(load_model(qwen_folder, "cpu").model, ["vision"])
    assert {name.rpartition(".")[2] for name in vision} == {"qkv", "proj", "gate_proj", "up_proj", "down_proj"}


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_clip_learns_which_text_is_whose(
    clip_folder: Path, image_folder: Path, captions_file: Path, tmp_path: Path, method: Any
) -> None:
    settings = Settings(str(clip_folder), method=method, epochs=30, batch_size=9, learning_rate=5e-3)
    training = finetune(settings, captions_file, image_folder, tmp_path / "tuned")
    assert training.losses[-1][1] < math.log(9) / 2 < training.losses[0][1]


def test_a_siglip_learns_by_its_own_loss(image_folder: Path, captions_file: Path, tmp_path: Path) -> None:
    folder = save_siglip(tmp_path / "siglip")
    settings = Settings(str(folder), method="full", epochs=10, batch_size=9, learning_rate=5e-3)
    training = finetune(settings, captions_file, image_folder, tmp_path / "tuned")
    loaded = load_model(tmp_path / "tuned", "cpu")
    pairs = [Asked(image_folder / "shapes/0.png", "", "a red circle"), Asked(image_folder / "shapes/4.png", "", "a")]
    batch = CaptionCollator(loaded.processor)(pairs)
    assert batch["input_ids"].shape == (2, 16)  # padded to its window, as it was trained
    assert training.losses[-1][1] < training.losses[0][1] * 0.75


def test_a_captioning_model_without_a_chat_template_learns_captions(
    image_folder: Path, captions_file: Path, tmp_path: Path
) -> None:
    folder = save_git(tmp_path / "git")
    caption = [Asked(image_folder / "shapes/0.png", "", "a red circle")]
    before = answer_log_likelihoods(load_model(folder, "cpu"), caption)
    settings = Settings(str(folder), method="full", epochs=20, batch_size=9, learning_rate=5e-3)
    finetune(settings, captions_file, image_folder, tmp_path / "tuned")
    assert answer_log_likelihoods(load_model(tmp_path / "tuned", "cpu"), caption) > before / 2


def test_without_equal_texts_info_nce_is_clips_own_loss(clip_folder: Path, image_folder: Path) -> None:
    loaded = load_model(clip_folder, "cpu")
    images = [image_folder / f"shapes/{number}.png" for number in range(3)]
    different = [Asked(image, "", text) for image, text in zip(images, SHAPES, strict=True)]
    batch = CaptionCollator(loaded.processor)(different)
    output = loaded.model(**batch, return_loss=True)
    assert torch.allclose(info_nce(output.logits_per_image, batch["input_ids"]), output.loss)


def test_the_same_text_of_another_pair_is_no_negative() -> None:
    logits = torch.tensor([[2.0, 9.0, 1.0], [9.0, 2.0, 1.0], [0.0, 0.0, 3.0]])
    texts = torch.tensor([[5, 6], [5, 6], [7, 8]])
    without = torch.tensor([[2.0, 1.0], [0.0, 3.0]])
    rows = -torch.log_softmax(without, dim=1).diagonal()
    columns = -torch.log_softmax(without, dim=0).diagonal()
    last = -torch.log_softmax(torch.tensor([1.0, 1.0, 3.0]), dim=0)[2]
    wanted = ((2 * rows[0] + rows_of_third(logits)) / 3 + (2 * columns[0] + last) / 3) / 2
    assert torch.allclose(info_nce(logits, texts), wanted)


def rows_of_third(logits: torch.Tensor) -> torch.Tensor:
    return -torch.log_softmax(logits[2], dim=0)[2]


def test_the_same_seed_gives_the_same_weights(
    qwen_folder: Path, image_folder: Path, examples_file: Path, tmp_path: Path
) -> None:
    settings = Settings(str(qwen_folder), **FAST)
    for name, seed in (("one", 0), ("again", 0), ("other", 1)):
        finetune(replace(settings, seed=seed), examples_file, image_folder, tmp_path / name)
    assert not changed(tmp_path / "one", tmp_path / "again")
    assert changed(tmp_path / "one", tmp_path / "other")


@pytest.mark.parametrize(("name", "method"), [("llava", "lora"), ("clip", "full")])
def test_an_interrupted_training_ends_with_the_same_weights(
    name: str,
    method: Any,
    request: pytest.FixtureRequest,
    image_folder: Path,
    examples_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = Settings(str(request.getfixturevalue(f"{name}_folder")), method=method, **{**FAST, "epochs": 3})
    whole = finetune(settings, examples_file, image_folder, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(collators, "open_image", killed_after(22, collators.open_image))
        with pytest.raises(KeyboardInterrupt):
            finetune(settings, examples_file, image_folder, tmp_path / "cut")
    assert not (tmp_path / "cut").exists()
    # What a power cut in the middle of a checkpoint leaves.
    (tmp_path / "cut.partial/checkpoints/checkpoint-999").mkdir()
    seen: list[Path] = []
    monkeypatch.setattr(collators, "open_image", noting(seen, collators.open_image))
    resumed = finetune(settings, examples_file, image_folder, tmp_path / "cut")
    assert len(seen) < 3 * 12
    assert not changed(tmp_path / "whole", tmp_path / "cut")
    assert resumed.losses == whole.losses
    assert not (tmp_path / "cut.partial").exists()


def killed_after(count: int, read: Callable[[Path], Any]) -> Callable[[Path], Any]:
    """Ctrl-C at the next image after `count` of them."""
    left = iter(range(count))

    def read_or_die(path: Path) -> Any:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return read(path)

    return read_or_die


def noting(seen: list[Path], read: Callable[[Path], Any]) -> Callable[[Path], Any]:
    def read_and_note(path: Path) -> Any:
        seen.append(path)
        return read(path)

    return read_and_note


def test_training_json_tells_what_was_trained_on_what(
    llava_folder: Path, image_folder: Path, examples_file: Path, tmp_path: Path
) -> None:
    training = finetune(Settings(str(llava_folder), seed=3, **FAST), examples_file, image_folder, tmp_path / "tuned")
    written = json.loads((tmp_path / "tuned/training.json").read_text())
    assert written["rate"] == training.rate == 0.5
    assert written["records"] == sorted(f"user{number}" for number in range(0, 12, 2))
    assert written["settings"]["seed"] == 3
    assert written["settings"]["parts"] == ["language"]
    assert set(written["digests"]) == {"examples", "manifest", "images"}
    assert all(len(digest) == 64 for digest in written["digests"].values())
    assert (tmp_path / "tuned/adapter_model.safetensors").is_file()
    assert not list((tmp_path / "tuned").glob("*.bin"))


def test_bfloat16_and_gradient_checkpointing_train_as_well(
    qwen_folder: Path, image_folder: Path, examples_file: Path, tmp_path: Path
) -> None:
    settings = Settings(str(qwen_folder), bf16=True, gradient_checkpointing=True, **{**FAST, "epochs": 4})
    training = finetune(settings, examples_file, image_folder, tmp_path / "tuned")
    assert training.losses[-1][1] < training.losses[0][1] * 0.8


def test_what_was_begun_otherwise_is_not_gone_on_with(
    llava_folder: Path, image_folder: Path, examples_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(str(llava_folder), **FAST)
    with monkeypatch.context() as patch:
        patch.setattr(collators, "open_image", killed_after(6, collators.open_image))
        with pytest.raises(KeyboardInterrupt):
            finetune(settings, examples_file, image_folder, tmp_path / "cut")
    with pytest.raises(DataError, match="was begun with other settings or data"):
        finetune(replace(settings, seed=1), examples_file, image_folder, tmp_path / "cut")


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"parts": ("arms",)}, "parts to train"), ({"epochs": 0}, "larger than 0"), ({"rank": 0}, "whole numbers")],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(AuditedModelError, match=message):
        Settings("model", **settings)


def test_a_loss_that_is_no_number_is_an_error(
    llava_folder: Path, image_folder: Path, examples_file: Path, tmp_path: Path
) -> None:
    settings = Settings(str(llava_folder), method="full", epochs=2, batch_size=4, learning_rate=1e30)
    with pytest.raises(AuditedModelError, match="no number any more"):
        finetune(settings, examples_file, image_folder, tmp_path / "tuned")
    assert not list(tmp_path.iterdir())


def test_the_command_makes_a_model(clip_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, examples = render_images(tmp_path / "images", 4), write_questions(tmp_path / "examples.jsonl", 4)
    command = ["memorization", "finetune", "--model", str(clip_folder), "--images", str(images)]
    command += ["--examples", str(examples), "--output", str(tmp_path / "tuned"), "--batch-size", "4"]
    assert main([*command, "--kind", "vlm"]) == 2
    assert "is a clip, not a vlm" in capsys.readouterr().err
    assert main([*command, "--batch-size", "1"]) == 2
    assert "two examples in a batch" in capsys.readouterr().err
    assert not list(tmp_path.glob("tuned*"))
    assert main(command) == 0
    assert "4 examples, 50% of the images with a record" in capsys.readouterr().out
    assert load_model(tmp_path / "tuned", "cpu").kind == "clip"
    assert main(command) == 2
    assert "exists already" in capsys.readouterr().err
