"""results.json: what was trained on what, and what came of it. Fine-tuning is resumed by it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from privacy.errors import DataError, FinetuneError
from privacy.files import atomic_path, read_error, write_error
from privacy.passkey.tasks import TASKS
from privacy.passkey.training import Hyperparameters
from privacy.passkey.transforms import Transform

RESULTS = "results.json"
_MIN_LENGTH = 8  # leaves room for the special tokens of a pair
_MAX_RESULTS_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Settings:
    """What is trained on what; the same settings on the same machine give the same figures.

    task: one of `TASKS`. model: a Hugging Face folder. train, evaluation: as `read_rows` takes them; instead of
    `evaluation`, `hold_out` (0 to 1) takes a share out of the training data. columns: names of the task's columns, if
    not its own. limit: examples to train on, drawn at random; all by default. max_length: tokens that a text is cut at,
    if the model doesn't take fewer. prefix: stands before each text that is to be rewritten, as T5 wants it.
    transform: of the conversion; carried where the model's architecture lets it be. converted: a model that was
    converted from `model` before, and is to be trained instead.

    Raises:
        FinetuneError: they don't fit together.
    """

    task: str
    model: str
    train: str
    evaluation: str | None = None
    hold_out: float | None = None
    columns: tuple[str, ...] | None = None
    limit: int | None = None
    max_length: int = 128
    prefix: str = ""
    how: Hyperparameters = field(default_factory=Hyperparameters)
    transform: Transform = field(default_factory=lambda: Transform(carried=True))
    converted: str | None = None

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise FinetuneError(f"the task is one of {', '.join(TASKS)}")
        if (self.evaluation is None) == (self.hold_out is None):
            raise FinetuneError("either evaluation data or a share to hold out is needed")
        if self.hold_out is not None and not 0 < self.hold_out < 1:
            raise FinetuneError("the share to hold out is not between 0 and 1")
        wanted = TASKS[self.task].columns
        if self.columns is not None and len(self.columns) != len(wanted):
            raise FinetuneError(f"{self.task} takes {len(wanted)} columns: {', '.join(wanted)}")
        if self.limit is not None and self.limit < 1:
            raise FinetuneError("the limit is not a whole number from 1")
        if self.max_length < _MIN_LENGTH:
            raise FinetuneError(f"the maximal length is not a whole number from {_MIN_LENGTH}")
        if self.prefix and not TASKS[self.task].generates:
            raise FinetuneError(f"{self.task} has no use for a prefix")


@dataclass(frozen=True)
class Run:
    """A finished run.

    encryption: "none", or what was done to the model. scores: metrics in percent. evaluation_loss, losses, seconds,
    cpu_seconds, resumed: as `Trained` has them.
    """

    encryption: str
    scores: dict[str, float]
    evaluation_loss: float
    losses: list[tuple[int, float]]
    seconds: float
    cpu_seconds: float
    resumed: bool


@dataclass(frozen=True)
class Results:
    """What results.json holds. examples: how many were trained on, how many measured with. labels: classes by id."""

    settings: Settings
    examples: tuple[int, int]
    labels: list[str]
    runs: list[Run]

    def table(self) -> str:
        """The runs as a Markdown table; the difference from the first run is in percentage points of the metric."""
        metric, model = TASKS[self.settings.task].metric, Path(self.settings.model).name
        rows = [("task", "model", "encryption", metric, "difference", "training")]
        for run in self.runs:
            difference = f"{run.scores[metric] - self.runs[0].scores[metric]:+.2f} points"
            seconds = f"{run.seconds:,.0f} s" + (" since resumed" if run.resumed else "")
            rows.append((self.settings.task, model, run.encryption, f"{run.scores[metric]:.2f}", difference, seconds))
        return _markdown(rows)


def open_results(folder: Path, new: Results, resume: bool) -> Results:
    """The results to add runs to: `new` ones in a new folder, or with `resume` those that are there.

    Raises:
        DataError: the folder is there already, or can't be made or read.
        FinetuneError: it was begun with other settings or data.
    """
    path = folder / RESULTS
    if not folder.exists():
        try:
            folder.mkdir()
        except OSError as error:
            raise write_error(folder, error) from error
        write_results(folder, new)
        return new
    if not resume:
        raise DataError(f"{folder}: exists already; go on with it by --resume, or choose another folder")
    try:
        with open(path, "rb") as file:
            content = json.loads(file.read(_MAX_RESULTS_BYTES))
        runs = [Run(**{**each, "losses": [(step, loss) for step, loss in each["losses"]]}) for each in content["runs"]]
        same = {**content, "runs": []} == json.loads(_json(new))
    except OSError as error:
        raise read_error(path, error) from error
    except (ValueError, TypeError, KeyError):
        raise DataError(f"{path}: is no results file") from None
    if not same:
        raise FinetuneError(f"{folder}: was begun with other settings or other data; choose another folder")
    return replace(new, runs=runs)


def write_results(folder: Path, results: Results) -> None:
    """Replaces results.json. Raises DataError if it can't be written."""
    with atomic_path(folder / RESULTS) as temporary:
        temporary.write_text(_json(results), encoding="utf-8")


def _json(results: Results) -> str:
    content = {"metric": TASKS[results.settings.task].metric, **asdict(results)}
    return json.dumps(content, ensure_ascii=False, indent=1) + "\n"


def _markdown(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    header, *body = (" | ".join(map(str.ljust, row, widths)) for row in rows)
    rule = "-|-".join("-" * width for width in widths)
    return "\n".join([f"| {header} |", f"|-{rule}-|", *(f"| {line} |" for line in body)])
