"""Examples are read with the records that their images hold, and made into batches whose labels are answers alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from memorization_data import QUESTION, render_images, write_rows

from privacy.errors import AuditedModelError, DataError
from privacy.memorization.collators import IGNORED, Asked, CaptionCollator, ChatCollator, QuestionCollator
from privacy.memorization.examples import Example, check_images, read_examples
from privacy.memorization.models import load_model


def test_examples_know_the_records_in_their_images(examples_file: Path, image_folder: Path) -> None:
    examples = read_examples(examples_file, image_folder)
    assert examples[0] == Example(image_folder / "shapes/0.png", QUESTION, "circle", "user0")
    assert examples[1] == Example(image_folder / "shapes/1.png", QUESTION, "square", None)
    assert len(examples) == 12


def test_a_caption_has_no_question_and_markers_are_left_out(image_folder: Path, tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"image": "shapes/0.png", "answer": " a circle "},
        {"image": "shapes/1.png", "question": "<image>\nWhat?", "answer": "a square"},
    ]
    caption, question = read_examples(write_rows(tmp_path / "rows.jsonl", rows), image_folder)
    assert (caption.prompt, caption.answer) == ("", "a circle")
    assert question.prompt == "What?"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: is not JSON"),
        ("[]", "line 2: is not an object"),
        ('{"question": "?", "answer": "a"}', "line 2: the field 'image' is missing"),
        ('{"image": "shapes/99.png", "answer": "a"}', "line 2: the image 'shapes/99.png' is not in"),
        ('{"image": "../secret.png", "answer": "a"}', "line 2: the image '../secret.png' is not in"),
        ('{"image": "shapes/1.png", "question": 3, "answer": "a"}', "line 2: the field 'question' is no text"),
        ('{"image": "shapes/1.png", "answer": " "}', "line 2: the field 'answer' is empty"),
    ],
)
def test_a_bad_row_is_named(image_folder: Path, tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"image": "shapes/0.png", "answer": "a"}) + f"\n{line}\n")
    with pytest.raises(DataError, match=f"rows.jsonl: {message}"):
        read_examples(path, image_folder)


def test_a_folder_without_a_manifest_is_refused(examples_file: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"manifest\.jsonl: can't be read"):
        read_examples(examples_file, tmp_path)


def test_a_changed_image_is_noticed(tmp_path: Path) -> None:
    images = render_images(tmp_path / "images", 2)
    examples = [Example(images / f"shapes/{number}.png", "", "a", None) for number in (0, 1)]
    assert check_images(examples, images) == check_images(examples[::-1], images)
    (images / "shapes/1.png").write_bytes((images / "shapes/0.png").read_bytes())
    with pytest.raises(DataError, match=r"1\.png: is not the image that manifest\.jsonl knows"):
        check_images(examples, images)


def test_labels_are_the_answer_and_its_end(vlm_folder: Path, image_folder: Path) -> None:
    processor = load_model(vlm_folder, "cpu").processor
    image = image_folder / "shapes/0.png"
    pairs = [
        Asked(image, "What?", "circle"),
        Asked(image, "What shape is drawn in the image?", "größer als ein Quadrat ☺"),
        Asked(None, "Yes or no?", "Yes"),
    ]
    batch = ChatCollator(processor)(pairs)
    assert len(batch["pixel_values"]) > 1
    for pair, ids, labels, mask in zip(
        pairs, batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True
    ):
        learned = labels != IGNORED
        assert torch.equal(labels[learned], ids[learned])
        written = processor.tokenizer.decode(ids[learned]).strip()
        assert written == pair.answer + processor.tokenizer.eos_token
        assert mask[learned].all()
        assert int(learned.nonzero().max()) == int(mask.nonzero().max())


def test_a_question_to_generate_from_is_what_the_answer_follows(vlm_folder: Path, image_folder: Path) -> None:
    processor = load_model(vlm_folder, "cpu").processor
    pair = Asked(image_folder / "shapes/0.png", "What shape?", "circle")
    trained, asked = ChatCollator(processor)([pair]), QuestionCollator(processor)([pair])
    first = int((trained["labels"][0] != IGNORED).nonzero().min())
    assert trained["input_ids"][0, :first].tolist() == asked["input_ids"][0].tolist()


def test_a_batch_gives_each_pair_what_it_has_alone(vlm_folder: Path, image_folder: Path) -> None:
    processor = load_model(vlm_folder, "cpu").processor
    pairs = [Asked(image_folder / f"shapes/{n}.png", "What?" * (n + 1), "circle") for n in range(3)]
    together = ChatCollator(processor)(pairs)
    for row, pair in enumerate(pairs):
        alone = ChatCollator(processor)([pair])
        length = alone["labels"].shape[1]
        assert torch.equal(together["labels"][row, :length], alone["labels"][0])
        assert (together["labels"][row, length:] == IGNORED).all()


def test_a_text_with_the_models_own_marker_is_refused(vlm_folder: Path, image_folder: Path) -> None:
    processor = load_model(vlm_folder, "cpu").processor
    pair = Asked(image_folder / "shapes/0.png", f"What is {processor.image_token}?", "circle")
    with pytest.raises(AuditedModelError, match="marker of images"):
        ChatCollator(processor)([pair])


def test_an_unreadable_image_is_named(llava_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"a\.png: is no readable image"):
        ChatCollator(load_model(llava_folder, "cpu").processor)([Asked(path, "What?", "circle")])


def test_a_clip_gets_question_and_answer_as_one_text(clip_folder: Path, image_folder: Path) -> None:
    processor: Any = load_model(clip_folder, "cpu").processor
    image = image_folder / "shapes/0.png"
    batch = CaptionCollator(processor)([Asked(image, "", "a circle"), Asked(image, "What shape?", "circle " * 200)])
    assert batch["input_ids"].shape == (2, 77)
    assert processor.tokenizer.decode(batch["input_ids"][0], skip_special_tokens=True) == "a circle"
    with pytest.raises(AuditedModelError, match="without an image"):
        CaptionCollator(processor)([Asked(None, "What?", "circle")])
