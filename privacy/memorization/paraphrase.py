"""Augmentation of texts: questions and captions in other words, with the markers of their images left as they are.

Ju et al. (arXiv 2503.01208) compare the traces of private content with those of paraphrased texts. Here a text goes to
a paraphraser without the markers around it; if markers in the middle come back changed, the original is kept.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from privacy.errors import DataError, MemorizationError
from privacy.files import atomic_path, read_error
from privacy.memorization.journal import Journal
from privacy.memorization.synonyms import replace_words

MARKERS = (
    "<image>",
    "<|image|>",
    "<|image_pad|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<image_soft_token>",
    "<start_of_image>",
    "<end_of_image>",
    "<video>",
    "<|video_pad|>",
)

Outcome = Literal["paraphrased", "unchanged", "lost a marker", "unanswered"]

Paraphraser = Callable[[Sequence[str]], Sequence["str | None"]]
"""Each text in other words, or None where there is no usable answer."""

_AT_ONCE = 16
_LONGEST_GROWTH = 4


class Markers:
    """The strings that stand for images in a text; where two begin at the same place, the longer one counts.

    Raises:
        MemorizationError: there is none, or one is empty or blank.
    """

    def __init__(self, markers: Sequence[str] = MARKERS) -> None:
        if not markers or not all(marker.strip() for marker in markers):
            raise MemorizationError("the markers are one text or more, and none of them is blank")
        either = "|".join(re.escape(marker) for marker in sorted(markers, key=len, reverse=True))
        self._marker = re.compile(either)
        self._start = re.compile(rf"(?:\s|{either})*")
        self._end = re.compile(rf"(?:\s|{either})*\Z")

    def found(self, text: str) -> list[str]:
        """The markers in the text, in order."""
        return self._marker.findall(text)

    def parted(self, text: str) -> tuple[str, str, str]:
        """The markers and space that the text begins with, what is in between, and those that it ends with."""
        start = self._matched(self._start, text)
        middle = text[start:]
        # From the left, since a search from the right would have to know where the markers begin.
        end = next(place for place in range(len(middle) + 1) if self._end.match(middle, place))
        return text[:start], middle[:end], middle[end:]

    @staticmethod
    def _matched(pattern: re.Pattern[str], text: str) -> int:
        match = pattern.match(text)
        return match.end() if match else 0


@dataclass(frozen=True)
class Paraphrased:
    """A text after paraphrasing: the original, if the outcome isn't "paraphrased"."""

    text: str
    outcome: Outcome


class Synonyms:
    """A paraphraser that replaces common English words by synonyms; the same text and seed give the same words."""

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed

    def __call__(self, texts: Sequence[str]) -> list[str]:
        return [replace_words(text, random.Random(f"synonyms {self._seed} {text}")) for text in texts]


def paraphrase(texts: Sequence[str], paraphraser: Paraphraser, markers: Markers | None = None) -> list[Paraphrased]:
    """Each text in other words, with the same markers in the same order, and those at its ends where they were."""
    markers = markers or Markers()
    parts = [markers.parted(text) for text in texts]
    said = [place for place, (_, middle, _) in enumerate(parts) if middle]
    answers = dict(zip(said, paraphraser([parts[place][1] for place in said]), strict=True))
    return [_checked(text, parts[place], answers.get(place, ""), markers) for place, text in enumerate(texts)]


def paraphrase_file(
    source: Path,
    output: Path,
    paraphraser: Paraphraser,
    *,
    settings: dict[str, Any],
    field: str = "question",
    markers: Sequence[str] = MARKERS,
) -> Counter[Outcome]:
    """Writes the rows of a JSON Lines file with `field` in other words, and returns how often each outcome came.

    settings: of the paraphraser. They are kept with what is done so far, in a file beside `output` named .partial, from
    which an interrupted call goes on; it is removed at the end.

    Raises:
        DataError: `source` can't be read, or a row has no text in `field`; or `output` can't be written.
        MemorizationError: the interrupted call had other settings.
    """
    if source.exists() and output.exists() and source.samefile(output):
        raise DataError(f"{output}: is the file to read, which is not overwritten")
    chosen = Markers(markers)
    rows, digest = _rows(source, field)
    texts = [row[field] for row in rows]
    partial = output.with_name(output.name + ".partial")
    settings = {"work": "paraphrase", "input": digest, "field": field, "markers": list(markers), **settings}
    with Journal(partial, settings) as journal:
        done = [Paraphrased(line["text"], line["outcome"]) for line in journal.done]
        with tqdm(total=len(texts), initial=len(done), desc="paraphrasing", unit="text", disable=None) as progress:
            while len(done) < len(texts):
                for each in paraphrase(texts[len(done) : len(done) + _AT_ONCE], paraphraser, chosen):
                    journal.append({"text": each.text, "outcome": each.outcome})
                    done.append(each)
                    progress.update()
    with atomic_path(output) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as file:
        for row, each in zip(rows, done, strict=True):
            print(json.dumps({**row, field: each.text}, ensure_ascii=False), file=file)
    partial.unlink()
    return Counter(each.outcome for each in done)


def _checked(text: str, parts: tuple[str, str, str], answer: str | None, markers: Markers) -> Paraphrased:
    before, middle, after = parts
    if middle and (answer is None or not answer.strip() or len(answer) > _LONGEST_GROWTH * len(middle) + 100):
        return Paraphrased(text, "unanswered")
    new = before + (answer or "").strip() + after
    if markers.found(new) != markers.found(text):
        return Paraphrased(text, "lost a marker")
    return Paraphrased(text, "unchanged") if new == text else Paraphrased(new, "paraphrased")


def _rows(path: Path, field: str) -> tuple[list[dict[str, Any]], str]:
    """The rows of a JSON Lines file, and the SHA-256 of the file."""
    try:
        content = path.read_bytes()
        lines = content.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError:
        raise DataError(f"{path}: is not UTF-8") from None
    except OSError as error:
        raise read_error(path, error) from error
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise DataError(f"{path}: row {number}: is no JSON") from None
        if not isinstance(row, dict) or not isinstance(row.get(field), str):
            raise DataError(f"{path}: row {number}: field {field!r}: is no text")
        rows.append(row)
    if not rows:
        raise DataError(f"{path}: has no rows")
    return rows, hashlib.sha256(content).hexdigest()
