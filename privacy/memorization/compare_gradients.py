"""Compares what private text in the images does to a model's gradients with what harmless changes do.

    report = compare_gradients(model, without, with_text, examples, output)
    print(report.table())

`without` and `with_text` are two folders of `embed` that share images, as r000 and r100. `output` gets gradients.csv
and gradients.json (a row a layer and comparison), heatmap.png and the augmented images. A call that was interrupted
goes on with the batch that it was at.
"""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
from numpy.typing import NDArray
from torch import nn
from tqdm import tqdm

from privacy.errors import AuditedModelError, DataError, MemorizationError
from privacy.files import atomic_path, write_error
from privacy.memorization.augment import augment_image
from privacy.memorization.collators import Asked, collator_for
from privacy.memorization.contrastive import contrastive_loss
from privacy.memorization.examples import Example, file_digest, read_examples
from privacy.memorization.folders import write_file
from privacy.memorization.gradients import DEFAULT_MEMORY, Batch, answer_loss, gradient_similarity
from privacy.memorization.journal import Journal
from privacy.memorization.manifest import NAME as MANIFEST
from privacy.memorization.models import ADAPTER, LoadedModel, base_of, load_model
from privacy.memorization.pictures import open_picture, read_file
from privacy.memorization.plots import draw_heat_map
from privacy.memorization.states import fingerprint
from privacy.memorization.synonyms import replace_words

RESULTS = "gradients.json"

PRIVATE, AUGMENTED, PARAPHRASED = "private text", "augmented images", "paraphrased text"
CHANGED_TASK, OTHER_BATCH = "changed task", "another batch"
COMPARISONS = (PRIVATE, AUGMENTED, PARAPHRASED, CHANGED_TASK, OTHER_BATCH)


@dataclass(frozen=True)
class GradientSettings:
    """How gradients are compared.

    batches: how many, of `batch_size` examples each, that the similarities are averaged over. micro_batch_size:
    examples that go through the model at a time, unless its loss is contrastive. memory: bytes that sums of gradients
    may take.

    Raises:
        MemorizationError: there are too few of something.
    """

    batches: int = 4
    batch_size: int = 8
    micro_batch_size: int = 1
    memory: int = DEFAULT_MEMORY
    seed: int = 0

    def __post_init__(self) -> None:
        if self.batches < 2:
            raise MemorizationError("two batches or more are needed, as each is compared with another one, too")
        if min(self.batch_size, self.micro_batch_size, self.memory) < 1:
            raise MemorizationError("batch sizes and memory are whole numbers from 1 on")


@dataclass(frozen=True)
class GradientReport:
    """Cosine similarities [batches, layers, comparisons] with the gradients of unchanged batches; NaN without one."""

    layers: tuple[str, ...]
    comparisons: tuple[str, ...]
    cosines: NDArray[np.float64]

    def mean(self) -> NDArray[np.float64]:
        """The means [layers, comparisons] over batches."""
        mean: NDArray[np.float64] = self.cosines.mean(axis=0)
        return mean

    def deviation(self) -> NDArray[np.float64]:
        """The standard deviations [layers, comparisons] over batches."""
        deviation: NDArray[np.float64] = self.cosines.std(axis=0, ddof=1)
        return deviation

    def table(self) -> str:
        """A line a layer: the means over batches, with their standard deviations."""
        width = max(map(len, self.layers)) + 2
        lines = [f"{'cosine similarity':{width}}" + "".join(f"{name:>19}" for name in self.comparisons)]
        for layer, means, deviations in zip(self.layers, self.mean(), self.deviation(), strict=True):
            cells = (
                f"{mean:.4f} ± {deviation:.4f}" if np.isfinite(mean) else "no gradient"
                for mean, deviation in zip(means, deviations, strict=True)
            )
            lines.append(f"{layer:{width}}" + "".join(f"{cell:>19}" for cell in cells))
        return "\n".join(lines)


def compare_gradients(
    model: str | Path,
    without: Path,
    with_text: Path,
    examples_file: Path,
    output: Path,
    settings: GradientSettings | None = None,
    *,
    paraphrases: Path | None = None,
) -> GradientReport:
    """Compares the gradients of batches of examples with those of the same batches after each of `COMPARISONS`.

    private text: the images of `with_text`, of which those count that hold a record. augmented images: rotated, flipped
    and of other brightness and contrast. paraphrased text: questions (or captions) as in the file `paraphrases`, which
    is like `examples_file` line by line, by default with synonyms of the built-in table. changed task: questions and
    answers of other examples. another batch: other examples.

    The weights of an adapter's folder are compared in the adapter alone, of another model in all of its layers.

    Raises:
        DataError: a file can't be read or written, or the two folders don't belong together.
        MemorizationError: there are too few examples, or texts that can't be paraphrased.
        AuditedModelError: the model can't be loaded.
    """
    settings = settings or GradientSettings()
    pool = _read_pool(without, with_text, examples_file, paraphrases, settings.seed)
    chosen = _chosen(pool, settings)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(output, error) from error
    loaded = _load(model)
    described = {
        "work": "gradients",
        "weights": fingerprint(loaded.model),
        "examples": file_digest(examples_file),
        "paraphrases": None if paraphrases is None else file_digest(paraphrases),
        "manifests": [file_digest(folder / MANIFEST) for folder in (without, with_text)],
        **asdict(settings),
    }
    with Journal(output / "journal.jsonl", described) as journal:
        lines = list(journal.done)
        for number in tqdm(range(len(lines), settings.batches), desc="gradients", unit="batch", disable=None):
            lines.append(_compare_batch(loaded, chosen, number, output, settings))
            journal.append(lines[-1])
    report = _report(lines)
    _write(report, model, settings, output)
    return report


@dataclass(frozen=True)
class _Pair:
    """An example without and with private text in its image, and its question and answer in other words."""

    plain: Example
    private: Example
    paraphrase: tuple[str, str]


def _read_pool(without: Path, with_text: Path, examples_file: Path, paraphrases: Path | None, seed: int) -> list[_Pair]:
    """The examples, one an image, whose image holds a record in one folder, and none in the other."""
    plain, private = read_examples(examples_file, without), read_examples(examples_file, with_text)
    reworded = None if paraphrases is None else read_examples(paraphrases, without)
    if reworded is not None and [each.image for each in reworded] != [each.image for each in plain]:
        raise DataError(f"{paraphrases}: isn't about the same images as {examples_file}, line by line")
    rng = random.Random(f"paraphrases {seed}")
    pool: dict[Path, _Pair] = {}
    for place, (one, other) in enumerate(zip(plain, private, strict=True)):
        if other.record is None:
            continue
        if one.record is not None:
            raise DataError(f"{without / MANIFEST}: the image {one.image.name!a} holds a record there, too")
        words = _synonyms(one, rng) if reworded is None else (reworded[place].prompt, reworded[place].answer)
        pool.setdefault(one.image, _Pair(one, other, words))
    if not pool:
        raise DataError(f"{with_text / MANIFEST}: none of the examples' images holds a record")
    return list(pool.values())


def _chosen(pool: Sequence[_Pair], settings: GradientSettings) -> list[_Pair]:
    needed = settings.batches * settings.batch_size
    if len(pool) < needed:
        raise MemorizationError(
            f"{settings.batches} batches of {settings.batch_size} need {needed} images with a record and an example; "
            f"there are {len(pool)}"
        )
    chosen = random.Random(f"gradients {settings.seed}").sample(pool, needed)
    for start in range(0, needed, settings.batch_size):
        if all(each.paraphrase == _task(each.plain) for each in chosen[start : start + settings.batch_size]):
            raise MemorizationError("none of a batch's texts is paraphrased: give a file of paraphrases")
    return chosen


def _synonyms(example: Example, rng: random.Random) -> tuple[str, str]:
    """The question in other words; a caption, which has none, is the answer."""
    if example.prompt:
        return replace_words(example.prompt, rng), example.answer
    return "", replace_words(example.answer, rng)


def _task(example: Example) -> tuple[str, str]:
    return example.prompt, example.answer


def _compare_batch(
    loaded: LoadedModel, chosen: Sequence[_Pair], number: int, output: Path, settings: GradientSettings
) -> dict[str, Any]:
    """The line of the journal for one batch; JSON has no NaN, so None stands for it."""
    inputs = _variants(chosen, number, output, settings)
    loss = answer_loss if loaded.kind == "vlm" else _contrastive
    batches = {name: _batches(loaded, asked, settings) for name, asked in inputs.items()}
    reference = batches.pop("")
    found = gradient_similarity(loaded.model, loss, reference, batches, memory=settings.memory)
    cosines = [[float(value) if np.isfinite(value) else None for value in row] for row in found.cosines]
    return {"layers": list(found.layers), "cosines": cosines, "norms": found.norms.tolist()}


def _variants(chosen: Sequence[_Pair], number: int, output: Path, settings: GradientSettings) -> dict[str, list[Asked]]:
    """The batch as it is, under the empty name, and after each of the changes."""
    start = number * settings.batch_size
    rotated = [*chosen[start:], *chosen[:start]]
    batch, others = rotated[: settings.batch_size], rotated[settings.batch_size :]
    rng = random.Random(f"gradients {settings.seed} {number}")
    return {
        "": [Asked(each.plain.image, *_task(each.plain)) for each in batch],
        PRIVATE: [Asked(each.private.image, *_task(each.plain)) for each in batch],
        AUGMENTED: [
            Asked(_augmented(each.plain.image, output, f"{number}-{place}", rng), *_task(each.plain))
            for place, each in enumerate(batch)
        ],
        PARAPHRASED: [Asked(each.plain.image, *each.paraphrase) for each in batch],
        CHANGED_TASK: [
            Asked(each.plain.image, *_other_task(each.plain, [*others[place:], *others[:place]]))
            for place, each in enumerate(batch)
        ],
        OTHER_BATCH: [Asked(each.plain.image, *_task(each.plain)) for each in others[: settings.batch_size]],
    }


def _augmented(image: Path, output: Path, name: str, rng: random.Random) -> Path:
    picture = open_picture(read_file(image))
    content = picture.encode(augment_image(picture.upright, rng))
    target = f"augmented/{name}{image.suffix}"
    write_file(output, target, content)
    return output / target


def _other_task(example: Example, others: Sequence[_Pair]) -> tuple[str, str]:
    """The first other question and answer among `others`."""
    for other in others:
        if _task(other.plain) != _task(example):
            return _task(other.plain)
    raise MemorizationError("all examples have the same question and answer, so that no task can be changed")


def _batches(loaded: LoadedModel, asked: Sequence[Asked], settings: GradientSettings) -> list[Batch]:
    size = settings.micro_batch_size if loaded.kind == "vlm" else settings.batch_size
    device = next(loaded.model.parameters()).device
    collate = collator_for(loaded.processor, loaded.kind)
    return [
        {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in collate(part).items()}
        for part in (asked[start : start + size] for start in range(0, len(asked), size))
    ]


def _contrastive(model: nn.Module, batch: Batch) -> torch.Tensor:
    """It is no sum over pairs, each of which has the others of its batch beside it: a batch is taken as a whole."""
    return contrastive_loss(model, dict(batch))


def _load(place: str | Path) -> LoadedModel:
    """The model; an adapter isn't merged into its base, but beside it, where its gradients are."""
    adapter = Path(place)
    if not (adapter / ADAPTER).is_file():
        return load_model(place)
    base = load_model(base_of(adapter))
    try:
        adapted = peft.PeftModel.from_pretrained(base.model, str(adapter), local_files_only=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise AuditedModelError(f"{place}: its adapter can't be put upon its base") from error
    return LoadedModel(adapted.eval(), base.processor, base.kind)


def _report(lines: Sequence[Mapping[str, Any]]) -> GradientReport:
    cosines = np.array([line["cosines"] for line in lines], dtype=np.float64)  # None becomes NaN
    return GradientReport(tuple(lines[0]["layers"]), COMPARISONS, cosines)


def _write(report: GradientReport, model: str | Path, settings: GradientSettings, output: Path) -> None:
    rows = [
        {
            "layer": layer,
            "comparison": comparison,
            "cosine": _number(report.mean()[row, column]),
            "deviation": _number(report.deviation()[row, column]),
        }
        for row, layer in enumerate(report.layers)
        for column, comparison in enumerate(report.comparisons)
    ]
    with (
        atomic_path(output / "gradients.csv") as temporary,
        open(temporary, "w", encoding="utf-8", newline="") as file,
    ):
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    with atomic_path(output / RESULTS) as temporary:
        written = {"model": str(model), "settings": asdict(settings), "rows": rows}
        temporary.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    title = f"Gradients compared with those of unchanged batches\n(means over {settings.batches} batches)"
    draw_heat_map(report.layers, report.comparisons, report.mean(), output / "heatmap.png", title=title)


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
