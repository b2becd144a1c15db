"""The audit of a fine-tuned model: which records its loss gives away, and how surely.

    audit = run_audit("tuned", "base", examples, "drawn/r100", "photos", seen, unseen, "audit")
    audit.membership.auc.low > 0.6      # it remembers

A canary is a record that was drawn into fine-tuning images. It is drawn into the same images again, and so is each of
its candidates, records of the same kind that no fine-tuning saw; and all of them get the example's own question and
answer. If the model's loss is lower with the true record, though the answer has nothing to do with it, the model
remembers having seen it there.
"""

from __future__ import annotations

import hashlib
import json
import random
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from privacy.errors import DataError, MemorizationError, UnusableImageError
from privacy.files import read_error, write_error
from privacy.memorization.answering import answer_log_likelihoods
from privacy.memorization.collators import Asked, CaptionCollator
from privacy.memorization.drawing import Style, draw_text
from privacy.memorization.examples import Example, file_digest, read_examples
from privacy.memorization.exposure import Exposure, Membership, Scores, exposure, membership
from privacy.memorization.finetune import TRAINING
from privacy.memorization.journal import Journal
from privacy.memorization.manifest import NAME as MANIFEST
from privacy.memorization.manifest import read_manifest
from privacy.memorization.models import LoadedModel, load_model
from privacy.memorization.pictures import open_picture, read_file
from privacy.memorization.records import FIELDS, PrivateRecord

JOURNAL = "journal.jsonl"
_FEWEST_CANDIDATES = 2


@dataclass(frozen=True)
class AuditSettings:
    """How a model is audited.

    canaries: how many of the seen records, chosen at random; all, by default. candidates: unseen records that each is
    ranked among. style, record_fields, drawing_seed: as the records were drawn by `embed`. batch_size: images that go
    through the model at a time.

    Raises:
        MemorizationError: there are too few of something.
    """

    canaries: int | None = None
    candidates: int = 31
    style: Style = field(default_factory=Style)
    record_fields: tuple[str, ...] = FIELDS
    drawing_seed: int = 0
    batch_size: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        if self.candidates < _FEWEST_CANDIDATES:
            raise MemorizationError(f"a canary needs {_FEWEST_CANDIDATES} candidates at least")
        if self.batch_size < 1 or (self.canaries is not None and self.canaries < 1):
            raise MemorizationError("there has to be one canary, and one image in a batch, at least")


@dataclass(frozen=True)
class Audit:
    """What an audit found.

    model, base: as they were named. rows [canaries]: the canaries' places among the seen records, from 1. scores
    [canaries, 1 + candidates]: how much fine-tuning lowered the loss with the canary itself (first) and with each
    candidate, in nats and averaged over the canary's images. images: how many those are in all. records_trained: how
    many records the model's training.json says it has seen, None if there is none.
    """

    model: str
    base: str
    rows: tuple[int, ...]
    scores: Scores
    images: int
    records_trained: int | None
    exposure: Exposure
    membership: Membership


@dataclass(frozen=True)
class _Canary:
    """A seen record: its place, from 1; itself and then its candidates; the examples that it was drawn into.

    candidates: the places of the candidates among the unseen records, from 0.
    """

    row: int
    candidates: tuple[int, ...]
    records: tuple[PrivateRecord, ...]
    examples: tuple[Example, ...]


def run_audit(
    model: str | Path,
    base: str | Path,
    examples: Path,
    drawn: Path,
    originals: Path,
    seen: Sequence[PrivateRecord],
    unseen: Sequence[PrivateRecord],
    output: Path,
    settings: AuditSettings | None = None,
) -> Audit:
    """Audits `model`, which was fine-tuned from `base`.

    examples: the fine-tuning's. drawn: the folder of `embed` that it took its images from, whose manifest tells which
    record is in which. originals: the images that `embed` drew into. seen: the records that it drew. unseen: others of
    the same kind. The losses are kept in `output`, so that an interrupted call goes on where it was.

    Raises:
        MemorizationError: seen and unseen records overlap, there are too few of them, the model says that it was not
            fine-tuned with these, drawing doesn't give the images of `drawn` again, or a loss isn't finite.
        DataError: a file can't be read or written.
    """
    settings = settings or AuditSettings()
    trained = trained_records(Path(model))
    canaries = _canaries(examples, drawn, seen, unseen, settings)
    _check_trained(model, trained, canaries)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(output, error) from error
    described = _described(model, base, examples, drawn, canaries, settings)
    draw = _Drawing(drawn, originals, settings)
    with Journal(output / JOURNAL, described) as journal:
        losses = {
            name: _losses(name, place, canaries, draw, journal, settings)
            for name, place in (("base", base), ("model", model))
        }
    scores = losses["base"] - losses["model"]
    candidates = np.array([canary.candidates for canary in canaries])
    return Audit(
        str(model),
        str(base),
        tuple(canary.row for canary in canaries),
        scores,
        sum(len(canary.examples) for canary in canaries),
        None if trained is None else len(trained),
        exposure(scores, seed=settings.seed),
        membership(scores, candidates, seed=settings.seed),
    )


def trained_records(folder: Path) -> frozenset[str] | None:
    """The ids of the records that a model's training.json says it has seen; None if it has no such file.

    Raises:
        DataError: the file can't be read, or says nothing of records.
    """
    path = folder / TRAINING
    if not path.is_file():
        return None
    try:
        return frozenset(str(each) for each in json.loads(path.read_text(encoding="utf-8"))["records"])
    except OSError as error:
        raise read_error(path, error) from error
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{path}: doesn't tell what records were seen") from None


@torch.inference_mode()
def losses_of(loaded: LoadedModel, asked: Sequence[Asked]) -> list[float]:
    """The loss of each pair of image and text [B], in nats: of the whole answer, given image and question.

    Of a CLIP-like model it is the negated logit of image and text: the other pairs of a contrastive batch are the same
    for every candidate of a canary and would cancel out.
    """
    if loaded.kind == "vlm":
        return [-float(each) for each in answer_log_likelihoods(loaded, asked)]
    batch = CaptionCollator(loaded.processor)(asked)
    logits = loaded.model(**{name: each.to(loaded.model.device) for name, each in batch.items()}).logits_per_image
    return [-float(each) for each in logits.diagonal()]


class _Drawing:
    """Draws records into the original images, as `embed` did, and checks once an image that it did."""

    def __init__(self, drawn: Path, originals: Path, settings: AuditSettings) -> None:
        self._drawn, self._originals, self._settings = drawn, originals, settings
        self._digests = {entry.image: entry.sha256 for entry in read_manifest(drawn / MANIFEST)}

    def write(self, example: Example, records: Sequence[PrivateRecord], folder: Path) -> Iterator[Asked]:
        """The example with each record, the first of which is the one that `embed` drew; files go to `folder`."""
        name = example.image.relative_to(self._drawn).as_posix()
        settings = self._settings
        try:
            picture = open_picture(read_file(self._originals / name))
            for number, record in enumerate(records):
                text, seed = record.text(settings.record_fields), f"{settings.drawing_seed} {name}"
                content = picture.encode(draw_text(picture.upright, text, settings.style, seed=seed)[0])
                if number == 0 and hashlib.sha256(content).hexdigest() != self._digests[name]:
                    raise MemorizationError(
                        f"{self._originals / name}: with its record it isn't the image that embed wrote: give the "
                        "originals, and position, size, opacity, font, fields and seed as embed got them"
                    )
                path = folder / f"{number}{example.image.suffix}"
                path.write_bytes(content)
                yield Asked(path, example.prompt, example.answer)
        except UnusableImageError as error:
            raise DataError(f"{self._originals / name}: {error}") from error


def _losses(
    name: str,
    place: str | Path,
    canaries: Sequence[_Canary],
    draw: _Drawing,
    journal: Journal,
    settings: AuditSettings,
) -> Scores:
    """The mean losses [canaries, 1 + candidates] of a model, those from the journal if they are in it."""
    found = {line["canary"]: line["losses"] for line in journal.done if line["model"] == name}
    missing = [number for number in range(len(canaries)) if number not in found]
    if missing:
        loaded = load_model(place)
        for number in tqdm(missing, desc=f"losses of {place}", unit="canary", disable=None):
            found[number] = _losses_of_canary(loaded, canaries[number], draw, settings.batch_size)
            journal.append({"model": name, "canary": number, "losses": found[number]})
    return np.array([found[number] for number in range(len(canaries))])


def _losses_of_canary(loaded: LoadedModel, canary: _Canary, draw: _Drawing, batch_size: int) -> list[float]:
    sums = np.zeros(len(canary.records))
    for example in canary.examples:
        with tempfile.TemporaryDirectory(prefix="audit-") as folder:  # readable by its owner alone
            asked = list(draw.write(example, canary.records, Path(folder)))
            losses = [
                loss
                for start in range(0, len(asked), batch_size)
                for loss in losses_of(loaded, asked[start : start + batch_size])
            ]
        sums += losses
    mean: list[float] = (sums / len(canary.examples)).tolist()
    return mean


def _canaries(
    examples: Path,
    drawn: Path,
    seen: Sequence[PrivateRecord],
    unseen: Sequence[PrivateRecord],
    settings: AuditSettings,
) -> list[_Canary]:
    of_record: dict[str, list[Example]] = {}
    for example in read_examples(examples, drawn):
        if example.record is not None:
            of_record.setdefault(example.record, []).append(example)
    drawn_records = {entry.record for entry in read_manifest(drawn / MANIFEST)}
    if shared := sum(record.user_id in drawn_records for record in unseen):
        raise MemorizationError(f"{shared} of the unseen records are drawn into the images of {drawn}")
    if {record.user_id for record in seen} & {record.user_id for record in unseen}:
        raise MemorizationError("a record is both among the seen and the unseen ones")
    if len(unseen) < _FEWEST_CANDIDATES:
        raise MemorizationError(f"{len(unseen)} unseen records are too few: {_FEWEST_CANDIDATES} are the least")
    rows = [row for row, record in enumerate(seen, start=1) if record.user_id in of_record]
    if not rows:
        raise MemorizationError(f"none of the seen records is in an example whose image is in {drawn}")
    if settings.canaries is not None and settings.canaries < len(rows):
        rows = sorted(random.Random(f"canaries {settings.seed}").sample(rows, settings.canaries))
    canaries = []
    for row in rows:
        record = seen[row - 1]
        rng = random.Random(f"candidates {settings.seed} {row}")
        others = rng.sample(range(len(unseen)), min(settings.candidates, len(unseen)))
        records = (record, *(unseen[place] for place in others))
        canaries.append(_Canary(row, tuple(others), records, tuple(of_record[record.user_id])))
    return canaries


def _check_trained(model: str | Path, trained: frozenset[str] | None, canaries: Sequence[_Canary]) -> None:
    """A model that saw no record at all may be audited, as a control; one that saw others would falsely come clean."""
    if not trained:
        return
    if wrong := sum(canary.records[0].user_id not in trained for canary in canaries):
        raise MemorizationError(
            f"{model}: was fine-tuned without {wrong} of the {len(canaries)} seen records: give the folder of embed "
            "that it was fine-tuned on"
        )
    if any(record.user_id in trained for canary in canaries for record in canary.records[1:]):
        raise MemorizationError(f"{model}: was fine-tuned with some of the unseen records")


def _described(
    model: str | Path,
    base: str | Path,
    examples: Path,
    drawn: Path,
    canaries: Sequence[_Canary],
    settings: AuditSettings,
) -> dict[str, Any]:
    records = [[record.to_json() for record in canary.records] for canary in canaries]
    return {
        "work": "audit",
        "model": str(model),
        "model weights": _weights_digest(Path(model)),
        "base": str(base),
        "base weights": _weights_digest(Path(base)),
        "examples": file_digest(examples),
        "images": file_digest(drawn / MANIFEST),
        "records": hashlib.sha256(json.dumps(records).encode()).hexdigest(),
        "settings": {**asdict(settings), "record_fields": list(settings.record_fields)},
    }


def _weights_digest(folder: Path) -> str | None:
    """Of all safetensors in a folder; None for a hub id, which transformers looks after."""
    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        return None
    return hashlib.sha256("".join(file_digest(path) for path in paths).encode()).hexdigest()
