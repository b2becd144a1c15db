"""Hidden states: what the model itself gives out, reduced; whole files or none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from privacy.errors import DataError, MemorizationError
from privacy.memorization import states as states_module
from privacy.memorization.collators import Asked, CaptionCollator, QuestionCollator
from privacy.memorization.models import load_model
from privacy.memorization.states import LAST, MEAN, States, fingerprint, write_states

PROMPT = "What shape is drawn?"
NAMES = ("alice0", "user 483920 of Lisbon, female", "bob")


@pytest.fixture
def images(image_folder: Path) -> list[Path]:
    return [image_folder / "shapes" / f"{number}.png" for number in range(len(NAMES))]


def asking(processor: Any) -> Any:
    return lambda chosen: QuestionCollator(processor)([Asked(path, PROMPT, "") for path in chosen])


def captioning(processor: Any, images: Sequence[Path]) -> Any:
    def batch_of(chosen: Sequence[Path]) -> dict[str, Any]:
        return CaptionCollator(processor)([Asked(path, "", NAMES[images.index(path)]) for path in chosen])

    return batch_of


def test_the_language_models_states_are_the_models_own(vlm_folder: Path, images: list[Path], tmp_path: Path) -> None:
    model, processor, _ = load_model(vlm_folder, "cpu")
    written = write_states(model, images, asking(processor), tmp_path)
    for row, image in enumerate(images):
        with torch.inference_mode():
            hidden = model(**asking(processor)([image]), output_hidden_states=True).hidden_states
        # The last one that transformers gives out has gone through the final norm.
        for layer, state in zip(("language.embeddings", "language.0"), hidden, strict=False):
            assert written.read(layer, MEAN)[row] == pytest.approx(state[0].mean(0).numpy(), abs=1e-5)
            assert written.read(layer, LAST)[row] == pytest.approx(state[0, -1].numpy(), abs=1e-5)


def test_a_clips_towers_are_read_at_the_class_token_and_at_the_end_of_the_text(
    clip_folder: Path, images: list[Path], tmp_path: Path
) -> None:
    model, processor, _ = load_model(clip_folder, "cpu")
    batch_of = captioning(processor, images)
    written = write_states(model, images, batch_of, tmp_path, batch_size=3)
    batch = batch_of(images)
    with torch.inference_mode():
        vision = model.vision_model(batch["pixel_values"], output_hidden_states=True).hidden_states
        text = model.text_model(batch["input_ids"], batch["attention_mask"], output_hidden_states=True).hidden_states
    lengths = batch["attention_mask"].sum(1)
    assert len(set(lengths.tolist())) > 1  # or the padding would go untested
    for number, layer in enumerate(("embeddings", "0", "1")):
        assert written.read(f"vision.{layer}", LAST) == pytest.approx(vision[number][:, 0].numpy(), abs=1e-5)
        assert written.read(f"vision.{layer}", MEAN) == pytest.approx(vision[number].mean(1).numpy(), abs=1e-5)
        for row, length in enumerate(lengths):
            own = text[number][row, :length]
            assert written.read(f"text.{layer}", LAST)[row] == pytest.approx(own[-1].numpy(), abs=1e-5)
            assert written.read(f"text.{layer}", MEAN)[row] == pytest.approx(own.mean(0).numpy(), abs=1e-5)


def test_batches_do_not_change_states(clip_folder: Path, images: list[Path], tmp_path: Path) -> None:
    model, processor, _ = load_model(clip_folder, "cpu")
    one, three = (
        write_states(model, images, captioning(processor, images), tmp_path / str(size), batch_size=size)
        for size in (1, 3)
    )
    for layer in one.layers:
        for pooling in (MEAN, LAST):
            assert one.read(layer, pooling) == pytest.approx(three.read(layer, pooling), abs=1e-5)


def test_a_model_that_packs_images_is_refused_batches(qwen_folder: Path, images: list[Path], tmp_path: Path) -> None:
    model, processor, _ = load_model(qwen_folder, "cpu")
    with pytest.raises(MemorizationError, match="take batches of one"):
        write_states(model, images, asking(processor), tmp_path, batch_size=3)


def test_interrupted_work_goes_on_without_doing_anything_twice(
    llava_folder: Path, images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(states_module, "_SHARD", 1)
    model, processor, _ = load_model(llava_folder, "cpu")
    whole = write_states(model, images, asking(processor), tmp_path / "whole")
    asked: list[Path] = []

    def dying(chosen: Sequence[Path]) -> dict[str, Any]:
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.extend(chosen)
        return asking(processor)(chosen)

    with pytest.raises(KeyboardInterrupt):
        write_states(model, images, dying, tmp_path / "cut")
    with pytest.raises(DataError, match="has 2 of 3 inputs"):
        States(tmp_path / "cut")
    again: list[Path] = []
    resumed = write_states(
        model, images, lambda chosen: again.extend(chosen) or asking(processor)(chosen), tmp_path / "cut"
    )
    assert again == images[2:]
    assert np.array_equal(resumed.read("language.1", MEAN), whole.read("language.1", MEAN))


def test_states_of_other_weights_or_settings_are_not_taken_up(
    llava_folder: Path, images: list[Path], tmp_path: Path
) -> None:
    model, processor, _ = load_model(llava_folder, "cpu")
    write_states(model, images[:1], asking(processor), tmp_path, settings={"prompt": PROMPT})
    with pytest.raises(MemorizationError, match="prompt"):
        write_states(model, images[:1], asking(processor), tmp_path, settings={"prompt": "another"})
    with torch.no_grad():
        model.lm_head.weight += 1e-3
    with pytest.raises(MemorizationError, match="weights"):
        write_states(model, images[:1], asking(processor), tmp_path, settings={"prompt": PROMPT})


def test_a_changed_file_is_noticed(llava_folder: Path, images: list[Path], tmp_path: Path) -> None:
    model, processor, _ = load_model(llava_folder, "cpu")
    write_states(model, images[:1], asking(processor), tmp_path)
    shard = next(tmp_path.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(DataError, match="was changed"):
        States(tmp_path)


def test_no_hook_stays_and_the_fingerprint_tells_models_apart(
    llava_folder: Path, images: list[Path], tmp_path: Path
) -> None:
    model, processor, _ = load_model(llava_folder, "cpu")
    before = fingerprint(model)
    write_states(model, images[:1], asking(processor), tmp_path)
    hooks = [
        hook for each in model.modules() for hook in (*each._forward_hooks.values(), *each._forward_pre_hooks.values())
    ]
    assert not any(hook.__module__ == states_module.__name__ for hook in hooks)  # transformers has some of its own
    assert fingerprint(model) == before == fingerprint(load_model(llava_folder, "cpu").model)
