"""Benchmarks are read as published, models answer them, and figures before and after are compared."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from memorization_data import QUESTION, SHAPES, write_rows

from privacy.cli import main
from privacy.errors import AuditedModelError, DataError, MemorizationError
from privacy.memorization.answering import answer_log_likelihoods, choose
from privacy.memorization.benchmarks import (
    Question,
    is_letter,
    is_same_answer,
    is_yes_or_no,
    read_mme,
    read_scienceqa,
    read_vqa,
)
from privacy.memorization.collators import Asked, ChatCollator
from privacy.memorization.examples import open_image
from privacy.memorization.finetune import Settings, finetune
from privacy.memorization.models import load_model
from privacy.memorization.utility import Benchmark, Result, Share, figures, load_benchmark, mcnemar, measure, table

PROBLEMS: dict[str, dict[str, Any]] = {
    "3": {
        "question": "Which shape is this?",
        "choices": ["circle", "square"],
        "answer": 1,
        "hint": "Shapes have names.",
        "image": "image.png",
        "subject": "natural science",
        "grade": "grade2",
        "split": "test",
    },
    "7": {
        "question": "Which word rhymes with shape?",
        "choices": ["tape", "circle", "round"],
        "answer": 0,
        "hint": "",
        "image": None,
        "subject": "language science",
        "grade": "grade11",
        "split": "test",
    },
}


@pytest.fixture
def scienceqa(tmp_path: Path, image_folder: Path) -> Path:
    """Two problems of ScienceQA, one of them with an image."""
    return write_scienceqa(tmp_path / "scienceqa", PROBLEMS, image_folder)


def write_scienceqa(folder: Path, problems: dict[str, dict[str, Any]], images: Path) -> Path:
    (folder / "images/test/3").mkdir(parents=True)
    shutil.copy(images / "shapes/1.png", folder / "images/test/3/image.png")
    (folder / "problems.json").write_text(json.dumps(problems))
    (folder / "pid_splits.json").write_text(json.dumps({"test": ["3", "7"], "val": []}))
    return folder


@pytest.fixture
def mme(tmp_path: Path, image_folder: Path) -> Path:
    """Two subtasks of MME in the two layouts that it is published in, with three images."""
    folder = tmp_path / "mme"
    plain, nested = folder / "existence", folder / "posters"
    for each in (plain, nested / "images", nested / "questions_answers_YN"):
        each.mkdir(parents=True)
    for name in ("a", "b"):
        shutil.copy(image_folder / "shapes/0.png", plain / f"{name}.png")
        write_mme(plain / f"{name}.txt")
    shutil.copy(image_folder / "shapes/1.png", nested / "images/tt1.png")
    write_mme(nested / "questions_answers_YN/tt1.txt")
    return folder


def write_mme(path: Path) -> None:
    asked = "Is there a {} in this image? Please answer yes or no.\t{}\n"
    path.write_text(asked.format("circle", "Yes") + asked.format("square", "No"))


@pytest.fixture
def vqa_file(tmp_path: Path, image_folder: Path) -> Path:
    """The question that the examples are of, with choices, beside its images."""
    shutil.copytree(image_folder / "shapes", tmp_path / "shapes")
    return write_rows(
        tmp_path / "vqa.jsonl",
        [
            {
                "image": f"shapes/{n}.png",
                "question": f"<image>\n{QUESTION}",
                "answer": SHAPES[n % 3],
                "choices": list(SHAPES),
                "group": SHAPES[n % 3],
            }
            for n in range(6)
        ],
    )


@pytest.fixture(scope="module")
def tuned_folder(
    llava_folder: Path, image_folder: Path, examples_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The LLaVA, trained until it names the shapes it was shown."""
    folder = tmp_path_factory.mktemp("tuned") / "model"
    settings = Settings(
        str(llava_folder), "full", ("language", "vision", "projector"), epochs=30, batch_size=12, learning_rate=3e-3
    )
    finetune(settings, examples_file, image_folder, folder)
    return folder


def test_scienceqa_is_read_as_published(scienceqa: Path) -> None:
    with_image, without = read_scienceqa(scienceqa)
    assert with_image.image == scienceqa / "images/test/3/image.png"
    assert with_image.prompt == (
        "Context: Shapes have names.\nQuestion: Which shape is this?\nOptions: (A) circle (B) square\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert (with_image.answer, with_image.choices) == ("B", ("A", "B"))
    assert with_image.groups == ("natural science", "text context", "image context", "grades 1-6")
    assert without.image is None
    assert without.prompt.startswith("Context: N/A\n")
    assert without.groups == ("language science", "no context", "grades 7-12")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": 2}, "'answer' is not the place of a choice"),
        ({"choices": "circle"}, "'choices' is no list"),
        ({"grade": "grade13"}, "'grade' is none of"),
        ({"subject": None}, "'subject' is missing"),
        ({"image": "../3/image.png"}, "is no plain name"),
        ({"image": "other.png"}, "there is no image"),
    ],
)
def test_a_bad_problem_of_scienceqa_is_named(
    tmp_path: Path, image_folder: Path, change: dict[str, Any], message: str
) -> None:
    folder = write_scienceqa(tmp_path / "sqa", {**PROBLEMS, "3": {**PROBLEMS["3"], **change}}, image_folder)
    with pytest.raises(DataError, match=f"problems.json: problem '3': .*{message}"):
        read_scienceqa(folder)


def test_a_split_that_is_not_there_is_named(scienceqa: Path) -> None:
    with pytest.raises(DataError, match="has no split 'val'"):
        read_scienceqa(scienceqa, "val")


def test_mme_is_read_in_both_layouts(mme: Path) -> None:
    questions = read_mme(mme)
    assert [each.id for each in questions] == [
        *("existence/a/1", "existence/a/2", "existence/b/1", "existence/b/2"),
        *("posters/tt1/1", "posters/tt1/2"),
    ]
    assert questions[0].prompt == "Is there a circle in this image? Please answer yes or no."
    assert [each.answer for each in questions[:2]] == ["Yes", "No"]
    assert questions[4].image == mme / "posters/images/tt1.png"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "existence/a.txt").write_text("One?\tYes\n"), r"a\.txt: has 1 questions"),
        (lambda folder: (folder / "existence/a.txt").write_text("One?\tYes\nTwo? No\n"), r"a\.txt: line 2: is no"),
        (lambda folder: (folder / "existence/a.txt").write_text("One?\tMaybe\nTwo?\tNo\n"), r"a\.txt: line 1: is no"),
        (lambda folder: (folder / "existence/a.png").unlink(), r"a\.txt: there is no image"),
        (lambda folder: (folder / "other").mkdir(), "other: is no subtask of MME"),
        (shutil.rmtree, "is no folder"),
    ],
)
def test_what_is_wrong_with_mme_is_named(mme: Path, spoil: Callable[[Path], object], message: str) -> None:
    spoil(mme)
    with pytest.raises(DataError, match=message):
        read_mme(mme)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": "hexagon"}, "the answer is none of the choices"),
        ({"choices": ["circle", 3]}, "'choices' is no list of texts"),
        ({"choices": ["circle", "circle"]}, "two and more different"),
        ({"image": "../a.png"}, "no relative path"),
        ({"image": "a.png"}, "there is no image"),
        ({"question": None}, "'question' is missing"),
        ({"group": 3}, "'group' is no text"),
    ],
)
def test_a_bad_row_of_a_file_of_questions_is_named(vqa_file: Path, change: dict[str, object], message: str) -> None:
    rows = [json.loads(line) for line in vqa_file.read_text().splitlines()]
    rows[3].update(change)
    with pytest.raises(DataError, match=rf"vqa\.jsonl: line 4: .*{message}"):
        read_vqa(write_rows(vqa_file, rows))


@pytest.mark.parametrize(
    ("written", "right"),
    [
        *(("B", True), (" B\n", True), ("B. square", True), ("The answer is B.", True)),
        *(("A", False), ("Because", False), ("The answer is B. The answer is A.", False), ("", False), ("(B)", False)),
    ],
)
def test_letters_are_read_as_in_llavas_evaluation(written: str, right: bool) -> None:
    assert is_letter(Question("1", None, "", "B", ("A", "B"), ()), written) is right


@pytest.mark.parametrize(
    ("written", "said"),
    [("Yes", "Yes"), ("yes, it is", "Yes"), ("No.", "No"), (" no", "No"), ("It is: yes", None), ("", None)],
)
def test_yes_and_no_are_read_as_in_mmes_evaluation(written: str, said: str | None) -> None:
    for answer in ("Yes", "No"):
        assert is_yes_or_no(Question("1", None, "", answer, ("Yes", "No"), ()), written) is (said == answer)


def test_answers_are_the_same_but_for_case_punctuation_and_articles() -> None:
    question = Question("1", None, "", "A red circle.", (), ())
    assert is_same_answer(question, "the Red circle")
    assert not is_same_answer(question, "a circle")


def test_an_interval_is_wilsons() -> None:
    # Newcombe, "Two-sided confidence intervals for the single proportion", 1998, table I: 81 of 263.
    low, high = Share("", (True,) * 81 + (False,) * 182).interval
    assert (round(low, 2), round(high, 2)) == (25.53, 36.62)


def test_mcnemars_test_looks_at_the_changed_answers_alone() -> None:
    before, after = [True] * 8 + [False] * 4, [True] * 7 + [False] + [True] * 3 + [False]
    assert mcnemar(before, after) == pytest.approx(2 * (1 + 4) / 2**4)
    assert mcnemar(before, before) == 1


def test_mme_is_scored_as_published(mme: Path) -> None:
    benchmark = Benchmark("mme", read_mme(mme), is_yes_or_no, "generation")
    # existence: three of four questions, both for one of two images; posters: one of two, none for both.
    found = {each.name: each.value for each in figures(benchmark, [True, True, True, False, False, True])}
    assert found == {
        "existence: accuracy": 75,
        "existence: accuracy+": 50,
        "existence: score": 125,
        "posters: accuracy": 50,
        "posters: accuracy+": 0,
        "posters: score": 50,
        "perception: score of 2 subtasks of 10": 175,
    }


def test_scienceqa_is_scored_by_the_papers_groups(scienceqa: Path) -> None:
    benchmark = load_benchmark("scienceqa", scienceqa)
    found = [(each.name, each.value) for each in figures(benchmark, [True, False])]
    assert found == [
        ("natural science", 100),
        ("language science", 0),
        ("text context", 100),
        ("image context", 100),
        ("no context", 0),
        ("grades 1-6", 100),
        ("grades 7-12", 0),
        ("all", 50),
    ]


def test_a_likelihood_is_that_of_the_answers_tokens(vlm_folder: Path, image_folder: Path) -> None:
    loaded = load_model(vlm_folder, "cpu")
    pairs = [
        Asked(image_folder / "shapes/0.png", QUESTION, "circle"),
        Asked(None, "Yes or no?", "No"),
        Asked(image_folder / "shapes/1.png", "What?", "a green square"),
    ]
    together = answer_log_likelihoods(loaded, pairs)
    for pair, found in zip(pairs, together, strict=True):
        batch = ChatCollator(loaded.processor)([pair])
        with torch.inference_mode():
            wanted = -loaded.model(**batch).loss * (batch["labels"] != -100).sum()
        assert torch.allclose(found, wanted, atol=1e-3)


def test_fine_tuning_shows_in_the_figures(llava_folder: Path, tuned_folder: Path, vqa_file: Path) -> None:
    benchmark = load_benchmark("vqa", vqa_file)
    assert benchmark.by == "likelihood"
    before, after = measure(llava_folder, benchmark, batch_size=5), measure(tuned_folder, benchmark)
    assert before.figures[-1].value < 100
    assert after.figures[-1].value == 100
    assert after.answers == [question.answer for question in benchmark.questions]
    assert [each.name for each in after.figures] == [*SHAPES, "all"]
    last = table([before, after]).splitlines()[-1]
    assert f"{100 - before.figures[-1].value:+.2f} (p" in last
    assert "100.00 (60.97 to 100.00)" in last


def test_what_a_model_writes_is_read(tuned_folder: Path, vqa_file: Path) -> None:
    result = measure(tuned_folder, load_benchmark("vqa", vqa_file, by="generation"), batch_size=4)
    assert all(result.right)


def test_all_benchmarks_can_be_asked_both_ways(qwen_folder: Path, scienceqa: Path, mme: Path) -> None:
    for name, data in (("scienceqa", scienceqa), ("mme", mme)):
        chosen = measure(qwen_folder, load_benchmark(name, data, by="likelihood"))
        written = measure(qwen_folder, load_benchmark(name, data, by="generation"))
        assert len(chosen.answers) == len(written.answers) == len(chosen.right)


def test_a_clip_chooses_by_similarity_and_writes_nothing(clip_folder: Path, vqa_file: Path, scienceqa: Path) -> None:
    benchmark = load_benchmark("vqa", vqa_file)
    result = measure(clip_folder, benchmark, batch_size=4)
    loaded = load_model(clip_folder, "cpu")
    first = benchmark.questions[0]
    texts = [f"{first.prompt} {choice}" for choice in first.choices]
    assert first.image is not None
    inputs = loaded.processor(images=[open_image(first.image)], text=texts, padding=True, return_tensors="pt")
    assert result.answers[0] == first.choices[int(loaded.model(**inputs).logits_per_image.argmax())]
    with pytest.raises(AuditedModelError, match="writes no answers"):
        measure(clip_folder, load_benchmark("vqa", vqa_file, by="generation"))
    with pytest.raises(AuditedModelError, match="without an image"):
        measure(clip_folder, load_benchmark("scienceqa", scienceqa))


def test_an_open_question_cannot_be_chosen(llava_folder: Path, image_folder: Path) -> None:
    question = Question("5", image_folder / "shapes/0.png", "What?", "circle", (), ())
    with pytest.raises(AuditedModelError, match="question 5: has no choices"):
        choose(load_model(llava_folder, "cpu"), [question], 1)


def test_the_command_prints_a_table_and_writes_all_answers(
    llava_folder: Path, tuned_folder: Path, vqa_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["memorization", "utility", "--model", str(llava_folder), "--model", str(tuned_folder)]
    command += ["--benchmark", "vqa", "--data", str(vqa_file)]
    assert main([*command, "--output", str(tmp_path / "results.json")]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1].startswith("| all ")
    written = json.loads((tmp_path / "results.json").read_text())
    assert [each["model"] for each in written["models"]] == [str(llava_folder), str(tuned_folder)]
    assert written["models"][1]["answers"][0] == {"id": "1", "answer": "circle", "right": True}
    assert written["models"][1]["figures"][-1]["questions"] == 6


def test_bad_input_of_the_command_is_a_line_and_status_2(
    llava_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["memorization", "utility", "--model", str(llava_folder), "--benchmark", "mme", "--data", str(tmp_path)]
    assert main(command) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert main([*command, "--split", "val"]) == 2
    assert "mme has no splits" in capsys.readouterr().err


def test_no_batches_of_nothing(llava_folder: Path, vqa_file: Path) -> None:
    with pytest.raises(MemorizationError, match="batch size"):
        measure(llava_folder, load_benchmark("vqa", vqa_file), batch_size=0)


def test_scores_without_intervals_are_compared_as_well(mme: Path) -> None:
    benchmark = Benchmark("mme", read_mme(mme), is_yes_or_no, "generation")
    results = [Result(name, [], [], figures(benchmark, [hit] * 6)) for name, hit in (("a", False), ("b", True))]
    assert "+400.00" in table(results).splitlines()[-1]
