"""Benchmarks of what a model is meant to be able to do, read as they are published, or from a file of one's own.

ScienceQA (Lu et al., "Learn to Explain", NeurIPS 2022), a folder:
    problems.json               {"17": {"question": ..., "choices": [...], "answer": 0, "hint": "", "image": "image.png"
                                or null, "subject": "natural science", "grade": "grade5", "split": "test"}, ...}
    pid_splits.json             {"test": ["17", ...], "minitest": [...], ...}
    images/test/17/image.png    under the split that the problem itself names

MME (Fu et al., arXiv 2306.13394), a folder for each of its fourteen subtasks; in it, or in its folders images/ and
questions_answers_YN/, for each image a file of the same name:
    existence/000000006040.jpg
    existence/000000006040.txt  two lines, a question and Yes or No, with a tab between

vqa, a .jsonl file with an object a line; images are relative to its folder:
    {"image": "1.png", "question": "What is drawn?", "answer": "a circle"}
    {"image": "1.png", "question": "Which?", "answer": "circle", "choices": ["circle", "square"], "group": "shapes"}
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from privacy.errors import DataError
from privacy.files import read_error
from privacy.memorization.examples import rows, text, without_marker

PERCEPTION = (
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")

_IMAGES, _QUESTIONS = "images", "questions_answers_YN"
_SUFFIXES = (".jpg", ".png", ".jpeg")
_YES_NO = ("Yes", "No")
_LETTER_WANTED = "Answer with the option's letter from the given choices directly."
_ANSWER_IS = re.compile(r"The answer is ([A-Z])\.")
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_GRADE = re.compile(r"grade([1-9]|1[0-2])")


@dataclass(frozen=True)
class Question:
    """What a model is asked, and the answer it should give.

    image: None for a question about a text alone. answer: one of `choices`, if there are any, which are what a model
    might write: letters of options, Yes and No, or the answers themselves. groups: the names under which it counts.
    """

    id: str
    image: Path | None
    prompt: str
    answer: str
    choices: tuple[str, ...]
    groups: tuple[str, ...]


Reader = Callable[[Question, str], bool]
"""Tells whether a text that a model wrote gives a question's answer."""


def read_scienceqa(folder: Path, split: str = "test") -> list[Question]:
    """The questions of a split of ScienceQA, with the prompt that LLaVA is evaluated with (arXiv 2310.03744).

    Raises:
        DataError: a file is missing or isn't as described above; the message names the problem.
    """
    problems = _object(folder / "problems.json")
    ids = _object(folder / "pid_splits.json").get(split)
    if not isinstance(ids, list) or not ids:
        raise DataError(f"{folder / 'pid_splits.json'}: has no split {split!r}")
    return [_scienceqa_question(folder, str(each), problems) for each in ids]


def read_mme(folder: Path) -> list[Question]:
    """The questions of MME, the two about an image one after the other; `groups` has the subtask.

    Raises:
        DataError: a folder is no subtask, or an image or its two questions are missing or not as described above.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: is no folder")
    found = sorted(each for each in folder.iterdir() if each.is_dir())
    questions = [question for subtask in found for question in _mme_subtask(subtask)]
    if not questions:
        raise DataError(f"{folder}: has no folders of subtasks in it")
    return questions


def read_vqa(path: Path) -> list[Question]:
    """The questions of a .jsonl file.

    Raises:
        DataError: it can't be read, or a row isn't as described above.
    """
    questions = [_vqa_question(f"{path}: line {number}", path.parent, row) for number, row in rows(path)]
    if not questions:
        raise DataError(f"{path}: has no rows")
    return questions


def is_letter(question: Question, written: str) -> bool:
    """Whether a text names the right option, read as LLaVA's evaluation does: "B", "B. ..." or "The answer is B."."""
    written = written.strip()
    if written in question.choices:
        return written == question.answer
    if len(written) >= 3 and written[0] in question.choices and written[1:3] == ". ":
        return written[0] == question.answer
    found = _ANSWER_IS.findall(written)
    return len(found) == 1 and found[0] == question.answer


def is_yes_or_no(question: Question, written: str) -> bool:
    """Whether a text agrees with Yes or No, read as MME's own evaluation does: its first four letters hold one."""
    start = written.strip().lower()[:4]
    said = "Yes" if "yes" in start else "No" if "no" in start else None
    return said == question.answer


def is_same_answer(question: Question, written: str) -> bool:
    """Whether a text is the answer but for case, punctuation and articles, as in VQA (Antol et al., ICCV 2015)."""
    return _normalized(written) == _normalized(question.answer)


def _normalized(answer: str) -> str:
    plain = answer.lower().translate(str.maketrans("", "", string.punctuation))
    return " ".join(_ARTICLES.sub(" ", plain).split())


def _scienceqa_question(folder: Path, key: str, problems: dict[str, Any]) -> Question:
    where = f"{folder / 'problems.json'}: problem {key!a}"
    problem = problems.get(key)
    if not isinstance(problem, dict):
        raise DataError(f"{where}: is missing")
    choices, answer, hint, image = (problem.get(field) for field in ("choices", "answer", "hint", "image"))
    if not isinstance(choices, list) or not 2 <= len(choices) <= 26 or not all(isinstance(e, str) for e in choices):
        raise DataError(f"{where}: the field 'choices' is no list of texts")
    if type(answer) is not int or not 0 <= answer < len(choices):
        raise DataError(f"{where}: the field 'answer' is not the place of a choice")
    letters = tuple(string.ascii_uppercase[: len(choices)])
    options = " ".join(f"({letter}) {choice}" for letter, choice in zip(letters, choices, strict=True))
    context = hint.strip() if isinstance(hint, str) else ""
    asked = without_marker(text(where, problem, "question"))
    picture = _scienceqa_image(folder, key, text(where, problem, "split"), image, where)
    return Question(
        key,
        picture,
        f"Context: {context or 'N/A'}\nQuestion: {asked}\nOptions: {options}\n{_LETTER_WANTED}",
        letters[answer],
        letters,
        tuple(_scienceqa_groups(where, problem, bool(context), picture is not None)),
    )


def _scienceqa_image(folder: Path, key: str, split: str, image: Any, where: str) -> Path | None:
    if not image:
        return None
    if not all(isinstance(part, str) and PurePosixPath(part).name == part for part in (key, split, image)):
        raise DataError(f"{where}: the field 'image' or 'split' is no plain name")
    return _existing(folder / "images" / split / key / image, where)


def _scienceqa_groups(where: str, problem: dict[str, Any], has_text: bool, has_image: bool) -> Iterator[str]:
    """The columns of the paper's tables that a problem counts in."""
    yield text(where, problem, "subject")
    if has_text:
        yield "text context"
    if has_image:
        yield "image context"
    if not has_text and not has_image:
        yield "no context"
    grade = _GRADE.fullmatch(text(where, problem, "grade"))
    if grade is None:
        raise DataError(f"{where}: the field 'grade' is none of grade1 to grade12")
    yield "grades 1-6" if int(grade[1]) <= 6 else "grades 7-12"


def _mme_subtask(folder: Path) -> Iterator[Question]:
    if folder.name not in PERCEPTION + COGNITION:
        raise DataError(f"{folder}: is no subtask of MME")
    nested = (folder / _QUESTIONS).is_dir()
    files = sorted((folder / _QUESTIONS if nested else folder).glob("*.txt"))
    if not files:
        raise DataError(f"{folder}: has no files of questions")
    for path in files:
        images = folder / _IMAGES if nested else folder
        image = next((found for suffix in _SUFFIXES if (found := images / f"{path.stem}{suffix}").is_file()), None)
        if image is None:
            raise DataError(f"{path}: there is no image of that name in {images}")
        yield from _mme_questions(folder.name, path, image)


def _mme_questions(subtask: str, path: Path, image: Path) -> Iterator[Question]:
    lines = [line for line in _read(path).splitlines() if line.strip()]
    if len(lines) != 2:
        raise DataError(f"{path}: has {len(lines)} questions, where there are two about an image")
    for number, line in enumerate(lines, start=1):
        asked, tab, answer = line.rpartition("\t")
        answer = answer.strip().capitalize()
        if not tab or not asked.strip() or answer not in _YES_NO:
            raise DataError(f"{path}: line {number}: is no question with Yes or No after a tab")
        yield Question(f"{subtask}/{path.stem}/{number}", image, asked.strip(), answer, _YES_NO, (subtask,))


def _vqa_question(where: str, folder: Path, row: dict[str, Any]) -> Question:
    answer, choices, group = text(where, row, "answer").strip(), row.get("choices", []), row.get("group")
    if not isinstance(choices, list) or not all(isinstance(each, str) for each in choices):
        raise DataError(f"{where}: the field 'choices' is no list of texts")
    if choices and (answer not in choices or len(set(choices)) < max(len(choices), 2)):
        raise DataError(f"{where}: the answer is none of the choices, or those aren't two and more different ones")
    if group is not None and not isinstance(group, str):
        raise DataError(f"{where}: the field 'group' is no text")
    name = PurePosixPath(text(where, row, "image"))
    if name.is_absolute() or ".." in name.parts:
        raise DataError(f"{where}: the field 'image' is no relative path inside the file's folder")
    return Question(
        where.rpartition(" ")[2],
        _existing(folder / name, where),
        without_marker(text(where, row, "question")),
        answer,
        tuple(choices),
        () if group is None else (group,),
    )


def _existing(path: Path, where: str) -> Path:
    if not path.is_file():
        raise DataError(f"{where}: there is no image {path}")
    return path


def _object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(_read(path))
    except ValueError:
        raise DataError(f"{path}: is not JSON") from None
    if not isinstance(content, dict):
        raise DataError(f"{path}: is not an object")
    return content


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{path}: is not UTF-8") from None
    except OSError as error:
        raise read_error(path, error) from error
