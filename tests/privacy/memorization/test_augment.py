"""Images changed and texts reworded, with all that has to stay as it is."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from privacy.cli import main
from privacy.errors import AuditedModelError, DataError, MemorizationError, UnusableImageError
from privacy.memorization.augment import Ranges, augment_image, augment_images
from privacy.memorization.embed import embed
from privacy.memorization.manifest import read_manifest
from privacy.memorization.paraphrase import MARKERS, Markers, Synonyms, paraphrase, paraphrase_file
from privacy.memorization.paraphrase_model import LocalModel
from privacy.memorization.records import generate
from privacy.memorization.synonyms import TABLE, read_table, replace_words

STILL = Ranges(rotation=0, flip=0, brightness=(1, 1), contrast=(1, 1))


def picture(mode: str = "RGB") -> Image.Image:
    random_ = np.random.default_rng(0)
    return Image.fromarray(random_.integers(0, 256, (48, 64, 3), dtype=np.uint8)).convert(mode)


def changed(**ranges: Any) -> np.ndarray[Any, Any]:
    given_ranges = Ranges(**{"rotation": 0, "flip": 0, "brightness": (1, 1), "contrast": (1, 1), **ranges})
    return np.asarray(augment_image(picture(), random.Random(1), given_ranges)).astype(int)


# --- images


def test_without_any_change_an_image_stays_as_it_is() -> None:
    assert np.array_equal(changed(), np.asarray(picture()))


def test_a_flip_mirrors_left_and_right() -> None:
    assert np.array_equal(changed(flip=1), np.asarray(picture())[:, ::-1])


def test_brightness_multiplies_every_value() -> None:
    assert np.abs(changed(brightness=(0.5, 0.5)) - np.asarray(picture()) * 0.5).max() <= 1


def test_contrast_spreads_the_values_around_their_mean() -> None:
    before, after = np.asarray(picture()).astype(float), changed(contrast=(0.5, 0.5))
    assert after.std() == pytest.approx(before.std() / 2, rel=0.02)
    assert after.mean() == pytest.approx(before.mean(), abs=2)


def test_a_rotation_keeps_the_size_and_leaves_corners_black() -> None:
    grey = Image.new("L", (64, 64), 200)
    turned = np.asarray(augment_image(grey, random.Random(1), Ranges(flip=0, brightness=(1, 1), contrast=(0.5, 0.5))))
    assert turned.shape == (64, 64)
    assert turned[32, 32] == 200
    assert turned[0, 0] == 0


def test_every_draw_is_within_the_published_ranges() -> None:
    grey, factors = Image.new("L", (8, 8), 100), set()
    for seed in range(200):
        image = augment_image(grey, random.Random(seed), Ranges(rotation=0))
        factors.add(int(np.asarray(image)[4, 4]))
    assert min(factors) in range(80, 84)
    assert max(factors) in range(117, 121)


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_the_mode_stays(mode: str) -> None:
    assert augment_image(picture(mode), random.Random(0)).mode == mode


def test_a_kind_of_pixels_that_would_be_falsified_is_refused() -> None:
    with pytest.raises(UnusableImageError, match="CMYK"):
        augment_image(picture("CMYK"), random.Random(0))


@pytest.mark.parametrize(
    "wrong", [{"rotation": -1}, {"rotation": 200}, {"flip": 2}, {"brightness": (1.2, 0.8)}, {"contrast": (0, 1)}]
)
def test_ranges_that_are_none_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(MemorizationError):
        Ranges(**wrong)


@pytest.fixture
def embedded(tmp_path: Path) -> Path:
    """A folder as `embed` writes it, with four pictures."""
    for number in range(4):
        path = tmp_path / "source" / f"{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture().save(path)
    embed(tmp_path / "source", generate(4), tmp_path / "out", rates=[50], fields=["age"], workers=1)
    return tmp_path / "out" / "r050"


def test_augmented_images_keep_their_names_and_records(embedded: Path, tmp_path: Path) -> None:
    assert augment_images(embedded, tmp_path / "augmented", workers=1).images == 4
    before = read_manifest(embedded / "manifest.jsonl")
    after = read_manifest(tmp_path / "augmented" / "manifest.jsonl")
    assert [(entry.image, entry.record) for entry in after] == [(entry.image, entry.record) for entry in before]
    for entry in after:
        assert (tmp_path / "augmented" / entry.image).read_bytes() != (embedded / entry.image).read_bytes()


def test_the_same_seed_augments_alike(embedded: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        augment_images(embedded, tmp_path / name, seed=seed, workers=1)
    contents = [(tmp_path / name / "0" / "0.png").read_bytes() for name in "abc"]
    assert contents[0] == contents[1] != contents[2]


def test_augmenting_with_other_ranges_does_not_go_on(embedded: Path, tmp_path: Path) -> None:
    augment_images(embedded, tmp_path / "augmented", workers=1)
    with pytest.raises(MemorizationError, match="rotation"):
        augment_images(embedded, tmp_path / "augmented", ranges=STILL, workers=1)


def test_augment_images_command(embedded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (embedded / "broken.png").write_bytes(b"")
    output = tmp_path / "augmented"
    command = ["memorization", "augment", "images", str(embedded), "--output", str(output), "--workers", "1"]
    assert main([*command, "--rotation", "10", "--contrast", "0.9", "1.1"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{output}: 4 images",
        f"1 skipped, with the reasons in {output / 'skipped.jsonl'}",
    ]
    assert main([*command, "--contrast", "2", "1"]) == 2


# --- markers

words = st.sampled_from(["picture", "a", "Image", "car", "big", "<", ">", "|", "image", "\n", " ", "?", "kids", "é"])
texts = st.lists(st.one_of(words, st.sampled_from(MARKERS), st.text(max_size=3))).map("".join)


@given(texts, st.integers(0, 3))
def test_synonyms_leave_every_marker_untouched(text: str, seed: int) -> None:
    found = Markers().found(text)
    assert Markers().found(paraphrase([text], Synonyms(seed))[0].text) == found


@given(texts, texts)
def test_whatever_a_paraphraser_says_no_marker_is_lost(text: str, answer: str) -> None:
    outcome = paraphrase([text], lambda texts: [answer for _ in texts])[0]
    assert Markers().found(outcome.text) == Markers().found(text)
    if outcome.outcome != "paraphrased":
        assert outcome.text == text


@given(texts)
def test_the_parts_of_a_text_make_it_up_again(text: str) -> None:
    before, middle, after = Markers().parted(text)
    assert before + middle + after == text
    assert not middle or not (middle[0].isspace() or middle[-1].isspace())
    assert not middle.startswith(MARKERS)
    assert not middle.endswith(MARKERS)


def test_markers_around_a_text_are_not_shown_to_the_paraphraser() -> None:
    shown: list[str] = []

    def paraphraser(texts: Sequence[str]) -> list[str]:
        shown.extend(texts)
        return ["What do you see?"]

    text = "<|vision_start|><|image_pad|><|vision_end|>\nWhat is it? <image>"
    assert paraphrase([text], paraphraser)[0].text == (
        "<|vision_start|><|image_pad|><|vision_end|>\nWhat do you see? <image>"
    )
    assert shown == ["What is it?"]


@pytest.mark.parametrize("answer", ["Compare both.", "<image> <image>", "Compare <image> with <IMAGE>.", "<image>"])
def test_a_paraphrase_that_loses_a_marker_is_refused(answer: str) -> None:
    text = "Compare <image> with <image>, please."
    outcome = paraphrase([text], lambda texts: [answer])[0]
    if answer == "<image> <image>":
        assert outcome.outcome == "paraphrased"
    else:
        assert (outcome.text, outcome.outcome) == (text, "lost a marker")


@pytest.mark.parametrize("answer", [None, "", "  \n", "word " * 100])
def test_no_usable_answer_keeps_the_original(answer: str | None) -> None:
    outcome = paraphrase(["What is it?"], lambda texts: [answer])[0]
    assert (outcome.text, outcome.outcome) == ("What is it?", "unanswered")


def test_markers_can_be_chosen() -> None:
    markers = Markers(["[IMG]"])
    assert paraphrase(["[IMG] x <image>"], lambda texts: ["y"], markers)[0].text == "[IMG] y"
    for wrong in ([], [""], [" "]):
        with pytest.raises(MemorizationError):
            Markers(wrong)


# --- synonyms


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Two kids are leaping.", "Two children are jumping."),
        ("A car.", "An automobile."),
        ("an automobile", "a car"),
        ("Kids shouted, then leaped.", "Children yelled, then jumped."),
        ("It is located beneath a couch", "It is situated"),
        ("He chose it; it was chosen.", "He selected it; it was selected."),
        ("largest", "biggest"),
        ("I met Mrs. Child and CAR.", "I met Mrs. Child and CAR."),
        ("see car_1, car-like, <car>, http://car.example/car and 'car's", None),
        ("", ""),
    ],
)
def test_synonyms_come_in_the_same_form(text: str, expected: str | None) -> None:
    new = replace_words(text, random.Random(0))
    assert new.startswith(text if expected is None else expected)


def test_a_past_that_may_be_a_participle_is_not_guessed() -> None:
    assert replace_words("what she tossed", random.Random(0)) == "what she tossed"


def test_articles_follow_the_sound_of_every_word_in_the_table() -> None:
    table = read_table(TABLE)
    assert len(table) > 400
    words = {*table, *(each for synonyms in table.values() for each in synonyms)}
    # The letters whose sound is not what they seem; "use" and the like are known.
    doubtful = {
        word for word in words if word.startswith(("u", "eu", "o", "h")) and not word.startswith(("use", "usu"))
    }
    spoken_otherwise = ("utili", "uni", "eu", "one", "once", "hour", "hon", "heir")
    assert {word for word in doubtful if word.startswith(spoken_otherwise)} == {
        *("utilize", "utilizes", "utilized", "utilizing")
    }
    assert replace_words("a normally big car", random.Random(1)).startswith(("a usually", "a typically"))
    assert all("an us" not in replace_words("a normally big car", random.Random(seed)) for seed in range(20))


@pytest.mark.parametrize("line", ["car", "car cars = auto", "= car", "car = auto\nbus = car", "car = car"])
def test_a_table_with_a_mistake_names_the_line(tmp_path: Path, line: str) -> None:
    (tmp_path / "table.txt").write_text(line, encoding="utf-8")
    with pytest.raises(DataError, match=rf"table.txt: line {1 + line.count(chr(10))}"):
        read_table(tmp_path / "table.txt")


# --- files


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "questions.jsonl"
    rows = [{"image": f"{n}.png", "question": f"<image>\nWhat car has the number {n}?", "answer": n} for n in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_all_but_the_field_stays(questions: Path, tmp_path: Path) -> None:
    counts = paraphrase_file(questions, tmp_path / "new.jsonl", Synonyms(), settings={})
    assert counts == {"paraphrased": 40}
    for before, after in zip(rows(questions), rows(tmp_path / "new.jsonl"), strict=True):
        assert after == {**before, "question": before["question"].replace("car", "automobile")}


def test_an_interrupted_paraphrase_goes_on_where_it_was(questions: Path, tmp_path: Path) -> None:
    asked: list[str] = []

    def failing(texts: Sequence[str]) -> list[str]:
        if len(asked) >= 32:
            raise KeyboardInterrupt
        asked.extend(texts)
        return [f"new {text}" for text in texts]

    output = tmp_path / "new.jsonl"
    with pytest.raises(KeyboardInterrupt):
        paraphrase_file(questions, output, failing, settings={"seed": 1})
    assert not output.exists()
    with pytest.raises(MemorizationError, match=r"other settings \(seed\)"):
        paraphrase_file(questions, output, failing, settings={"seed": 2})
    rest: list[str] = []
    paraphrase_file(
        questions, output, lambda texts: [rest.append(t) or f"new {t}" for t in texts], settings={"seed": 1}
    )
    assert len(rest) == 8
    assert all(row["question"].startswith("<image>\nnew What") for row in rows(output))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new.jsonl", "questions.jsonl"]


@pytest.mark.parametrize("line", ["no JSON", "[]", '{"other": 1}', '{"question": 3}', "[" * 5000])
def test_a_row_without_the_field_is_named(questions: Path, tmp_path: Path, line: str) -> None:
    questions.write_text(questions.read_text(encoding="utf-8") + line, encoding="utf-8")
    with pytest.raises(DataError, match=r"questions.jsonl: row 41"):
        paraphrase_file(questions, tmp_path / "new.jsonl", Synonyms(), settings={})


def test_the_input_is_never_overwritten(questions: Path) -> None:
    with pytest.raises(DataError, match="not overwritten"):
        paraphrase_file(questions, questions, Synonyms(), settings={})


def test_augment_texts_command(questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    questions.write_text(questions.read_text(encoding="utf-8") + '{"question": "Why?"}\n', encoding="utf-8")
    command = ["memorization", "augment", "texts", str(questions), "--output", str(tmp_path / "new.jsonl")]
    assert main(command) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{tmp_path / 'new.jsonl'}: 41 texts, 40 in other words",
        "1 came back as they were",
    ]
    for wrong in (["--field", "text"], ["--endpoint", "http://127.0.0.1/v1"], ["--local-model", str(tmp_path)]):
        assert main([*command, *wrong]) == 2
        assert capsys.readouterr().err.count("\n") == 1


# --- local models

VOCABULARY = [
    "<pad>",
    "</s>",
    "<unk>",
    *["what", "is", "it", "tell", "me", "that", "in", "other", "words", "paraphrase", "text"],
    ":",
    "?",
    ".",
]


def tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    inner = Tokenizer(WordLevel({word: number for number, word in enumerate(VOCABULARY)}, unk_token="<unk>"))
    inner.pre_tokenizer = Whitespace()
    made = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    made.save_pretrained(folder)
    return made


def taught(model: Any, inputs: dict[str, torch.Tensor], folder: Path) -> None:
    """Trains a model on one answer until it gives it, and saves it."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        model(**inputs).loss.backward()
        optimizer.step()
    model.save_pretrained(folder)


@pytest.fixture(scope="session")
def text_to_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A T5 that says "tell me that ." to "paraphrase: what is it?"."""
    folder = tmp_path_factory.mktemp("t5")
    made = tokenizer(folder)
    torch.manual_seed(0)
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 4, "dropout_rate": 0.0}
    config = T5Config(vocab_size=len(VOCABULARY), **sizes, pad_token_id=0, eos_token_id=1, decoder_start_token_id=0)
    asked = made("paraphrase: what is it?", return_tensors="pt", return_token_type_ids=False)
    answer = made("tell me that . </s>", return_tensors="pt")["input_ids"]
    taught(T5ForConditionalGeneration(config), {**asked, "labels": answer}, folder)
    return folder


@pytest.fixture(scope="session")
def causal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 with a chat template that says "tell me that ." to anything."""
    folder = tmp_path_factory.mktemp("gpt2")
    made = tokenizer(folder)
    made.chat_template = "{% for message in messages %}{{ message.content }} {% endfor %}"
    made.save_pretrained(folder)
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(VOCABULARY), n_positions=400, n_embd=32, n_layer=1, n_head=4, eos_token_id=1, bos_token_id=1
    )
    config.resid_pdrop = config.embd_pdrop = config.attn_pdrop = 0.0
    from privacy.memorization.paraphrase_model import _INSTRUCTION

    prompt = made(_INSTRUCTION + "what is it? ", return_tensors="pt")["input_ids"]
    answer = made("tell me that . </s>", return_tensors="pt")["input_ids"]
    whole = torch.cat([prompt, answer], dim=1)
    labels = torch.cat([torch.full_like(prompt, -100), answer], dim=1)
    taught(GPT2LMHeadModel(config), {"input_ids": whole, "labels": labels}, folder)
    return folder


@pytest.mark.parametrize("model", ["text_to_text", "causal"])
def test_a_local_model_paraphrases_around_the_marker(model: str, request: pytest.FixtureRequest) -> None:
    local = LocalModel(str(request.getfixturevalue(model)), "cpu")
    assert [each.text for each in paraphrase(["<image>\nwhat is it?"], local)] == ["<image>\ntell me that ."]


def test_a_local_model_answers_alike_in_any_batch(text_to_text: Path) -> None:
    local = LocalModel(str(text_to_text), "cpu")
    assert local(["what is it?", "what is it? what is it?"])[0] == local(["what is it?"])[0]
    assert local([]) == []


def test_an_answer_without_an_end_is_none(tmp_path: Path) -> None:
    tokenizer(tmp_path)
    torch.manual_seed(0)
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    config = T5Config(vocab_size=len(VOCABULARY), **sizes, pad_token_id=0, eos_token_id=1, decoder_start_token_id=0)
    model = T5ForConditionalGeneration(config)
    with torch.no_grad():
        model.lm_head.weight[1] = 0
        model.generation_config.suppress_tokens = [1]
    model.save_pretrained(tmp_path)
    assert LocalModel(str(tmp_path), "cpu")(["what is it?"]) == [None]


def test_a_model_without_safetensors_is_refused(text_to_text: Path, tmp_path: Path) -> None:
    for path in text_to_text.iterdir():
        if path.suffix != ".safetensors":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(AuditedModelError, match="can't be read"):
        LocalModel(str(tmp_path), "cpu")


def test_augment_texts_by_a_local_model(text_to_text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "q.jsonl").write_text('{"caption": "<image> what is it?"}\n', encoding="utf-8")
    command = ["memorization", "augment", "texts", str(tmp_path / "q.jsonl"), "--field", "caption", "--device", "cpu"]
    assert main([*command, "--output", str(tmp_path / "new.jsonl"), "--local-model", str(text_to_text)]) == 0
    assert rows(tmp_path / "new.jsonl") == [{"caption": "<image> tell me that ."}]
    assert capsys.readouterr().out == f"{tmp_path / 'new.jsonl'}: 1 texts, 1 in other words\n"
