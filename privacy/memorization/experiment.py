"""A small experiment with known truth: do the audit's tools find what is there, and nothing where there is nothing?

A small LLaVA that reads (`small_model`) is fine-tuned on pictures of a shape with made-up user ids drawn into 0, 50 and
100% of them, on a question about the shape. Then it is probed and audited with the commands of this package, just as
any other model would be.

What makes a model remember text that has nothing to do with the task is that it helps to answer what can't be answered
from the picture (Ju et al., arXiv 2503.01208: spurious correlations within mini-batches). Of the pictures here a third
are of `users` with several pictures each, whose answers don't fit the picture: labels that are wrong in a way that is
each user's own. The others are of one user each, and have true answers. A model can learn the wrong answers only by the
ids, if they are there, so it has to tell the ids of those users from all others. It is never told to, and the users it
is probed with are in no picture that it saw.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from tqdm import tqdm

from privacy.errors import DataError
from privacy.files import atomic_path, read_error, write_error
from privacy.memorization.audit import Audit, AuditSettings, run_audit
from privacy.memorization.embed import embed, folder_name
from privacy.memorization.exposure import Interval
from privacy.memorization.finetune import PARTS, TRAINING, Settings, finetune
from privacy.memorization.manifest import NAME as MANIFEST
from privacy.memorization.manifest import read_manifest
from privacy.memorization.probe_models import ProbeReport, ProbeSettings, probe_models
from privacy.memorization.probing import NEW_RECORDS, Design, Features
from privacy.memorization.records import PrivateRecord, generate, write_records
from privacy.memorization.report import verdict_of, write_report
from privacy.memorization.small_model import (
    COLOURS,
    FIELDS,
    STYLE,
    WHICH_COLOUR,
    draw_shape,
    pretrain,
)

RATES = (0, 50, 100)
UNTUNED = "before"
RESULTS, CHART, EXAMPLES = "experiment.json", "experiment.png", "examples.jsonl"

_PRETRAINING = "pretraining.json"


@dataclass(frozen=True)
class Plan:
    """The size of the experiment.

    users: those with `images_per_user` pictures and answers of their own; as many others are never seen. others: users
    with one picture and a true answer. images_per_user is even, so that at 50%, too, each user is in as many. held_out:
    new pictures a pair of a seen and an unseen user is probed on.
    """

    pretraining_steps: int = 1000
    users: int = 40
    images_per_user: int = 20
    others: int = 1600
    epochs: int = 12
    learning_rate: float = 1e-3
    batch_size: int = 32
    held_out: int = 6
    features: Features = "linear"
    permutations: int = 200
    candidates: int = 7


@dataclass(frozen=True)
class RateResult:
    """What was found at one rate: the best layer's probe accuracy, with its 95% interval and p value, and the audit.

    The p value is corrected for having looked at all layers.
    """

    seed: int
    rate: int
    layer: str
    accuracy: Interval
    chance: float
    p_value: float
    auc: Interval
    exposure: Interval
    expected_exposure: float
    outcome: str


@dataclass(frozen=True)
class ExperimentResult:
    """All rates of all repetitions, how well the base model reads (share of digits), and the time it took."""

    plan: Plan
    reading_accuracy: float
    seconds: float
    results: tuple[RateResult, ...]

    def table(self) -> str:
        """A line for each repetition and rate."""
        lines = [
            f"the base model reads {self.reading_accuracy:.1%} of digits; {self.seconds / 60:.1f} minutes in all",
            "",
            f"{'seed':>4}{'rate':>6}  {'probe':22}{'p':>6}  {'membership AUC':22}{'bits':>5}  verdict",
        ]
        lines += [
            f"{each.seed:>4}{each.rate:>5}%  {_interval(each.accuracy):22}{each.p_value:>6.3f}  "
            f"{_interval(each.auc):22}{each.exposure.estimate:>5.2f}  {each.outcome}"
            for each in self.results
        ]
        return "\n".join(lines)


def run_experiment(output: Path, *, seeds: int = 1, plan: Plan | None = None) -> ExperimentResult:
    """Runs the experiment in the folder `output`; what an interrupted call finished there is kept.

    Writes experiment.json and experiment.png, and a folder for each repetition with records, images, models, probes and
    audit reports. Repetitions share the base model; their records, images and fine-tunings differ.

    Raises:
        MemorizationError, DataError: as the parts of this package that it calls.
    """
    plan = plan or Plan()
    started = time.monotonic()
    _make(output)
    reading = _base_model(output, plan)
    results: list[RateResult] = []
    for seed in tqdm(range(seeds), desc="experiment", unit="repetition", disable=None):
        results += _repetition(output / "base", output / f"seed{seed}", plan, seed)
    result = ExperimentResult(plan, reading, time.monotonic() - started, tuple(results))
    with atomic_path(output / RESULTS) as temporary:
        temporary.write_text(json.dumps(asdict(result), indent=1) + "\n", encoding="utf-8")
    draw_chart(results, output / CHART)
    return result


def draw_chart(results: Sequence[RateResult], path: Path) -> None:
    """Probe accuracy and membership AUC by rate, a line with its 95% interval for each repetition.

    Raises DataError if the file can't be written.
    """
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    row = figure.subplots(1, 2, sharey=True)
    for seed in sorted({each.seed for each in results}):
        own = [each for each in results if each.seed == seed]
        for axes, found in zip(row, ([each.accuracy for each in own], [each.auc for each in own]), strict=True):
            _draw_line(axes, [each.rate + 2 * seed for each in own], found, f"repetition {seed + 1}")
    for axes, title in zip(row, ("probe accuracy, best layer", "membership AUC"), strict=True):
        axes.axhline(0.5, color="#555555", linestyle=":", linewidth=1)
        axes.set(title=title, xticks=RATES, ylim=(0.35, 1.02), xlabel="fine-tuning images with private text, %")
    row[0].legend(loc="upper left", fontsize="small")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def _draw_line(axes: Any, rates: Sequence[float], found: Sequence[Interval], label: str) -> None:
    values = [each.estimate for each in found]
    below = [each.estimate - each.low for each in found]
    above = [each.high - each.estimate for each in found]
    axes.errorbar(rates, values, (below, above), marker="o", capsize=3, label=label)


@dataclass(frozen=True)
class _Trial:
    """One repetition: where its files are, and which users are seen and which never are."""

    base: Path
    folder: Path
    seen: Sequence[PrivateRecord]
    unseen: Sequence[PrivateRecord]
    plan: Plan
    seed: int


def _repetition(base: Path, folder: Path, plan: Plan, seed: int) -> list[RateResult]:
    records = generate(2 * plan.users + plan.others, seed=seed)
    seen, unseen, others = records[: plan.users], records[plan.users : 2 * plan.users], records[2 * plan.users :]
    rng = random.Random(f"images {seed}")
    colours = _draw_images(folder / "images", plan.users * plan.images_per_user + plan.others, rng)
    _draw_images(folder / "held-out", plan.users * plan.held_out, rng)
    write_records(folder / "seen.jsonl", seen)
    write_records(folder / "unseen.jsonl", unseen)
    embed(
        folder / "images",
        _owners(seen, others, plan),
        folder / "drawn",
        rates=RATES,
        style=STYLE,
        fields=FIELDS,
        seed=seed,
        workers=1,
    )
    _write_examples(folder, seen, colours, seed)
    trial = _Trial(base, folder, seen, unseen, plan, seed)
    models = {rate: _finetuned(trial, rate) for rate in RATES}
    report = probe_models(
        {UNTUNED: base, **{f"{rate}%": place for rate, place in models.items()}},
        folder / "held-out",
        seen,
        unseen,
        folder / "probe",
        ProbeSettings(
            images_per_record=plan.held_out,
            style=STYLE,
            record_fields=FIELDS,
            prompt=WHICH_COLOUR,
            designs=_DESIGNS,
            features=plan.features,
            permutations=plan.permutations,
            seed=seed,
        ),
    )
    return [_result(trial, rate, report, _audited(trial, models[rate], rate)) for rate in RATES]


_DESIGNS: tuple[Design, ...] = (NEW_RECORDS,)


def _owners(seen: Sequence[PrivateRecord], others: Sequence[PrivateRecord], plan: Plan) -> list[PrivateRecord]:
    """The user of each image: in every round all of `seen` once, and their share of the others.

    `embed` draws the first half of them at 50%, which so holds half the images of each user.
    """
    rounds = plan.images_per_user
    return [user for turn in range(rounds) for user in (*seen, *others[turn::rounds])]


def _draw_images(folder: Path, count: int, rng: random.Random) -> dict[str, str]:
    """The colour of each image by its name."""
    _make(folder)
    colours = {}
    for name in (f"{number:04}.png" for number in range(count)):
        image, colours[name] = draw_shape(rng)
        with atomic_path(folder / name) as temporary:
            image.save(temporary, format="PNG")
    return colours


def _write_examples(folder: Path, seen: Sequence[PrivateRecord], colours: Mapping[str, str], seed: int) -> None:
    """The question and an answer for each image: that of its user, or the true one."""
    own = {user.user_id: random.Random(f"answer {seed} {user.user_id}").choice(tuple(COLOURS)) for user in seen}
    with atomic_path(folder / EXAMPLES) as temporary, open(temporary, "w", encoding="utf-8") as file:
        for entry in read_manifest(folder / "drawn" / folder_name(max(RATES)) / MANIFEST):
            answer = own.get(entry.record or "", colours[entry.image])
            print(json.dumps({"image": entry.image, "question": WHICH_COLOUR, "answer": answer}), file=file)


def _base_model(output: Path, plan: Plan) -> float:
    path = output / _PRETRAINING
    if (output / "base").is_dir() and path.is_file():
        try:
            return float(json.loads(path.read_text(encoding="utf-8"))["reading_accuracy"])
        except OSError as error:
            raise read_error(path, error) from error
        except (ValueError, KeyError, TypeError):
            raise DataError(f"{path}: isn't what this experiment wrote") from None
    accuracy = pretrain(output / "base", steps=plan.pretraining_steps)
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps({"reading_accuracy": accuracy}) + "\n", encoding="utf-8")
    return accuracy


def _finetuned(trial: _Trial, rate: int) -> Path:
    target = trial.folder / f"model-{folder_name(rate)}"
    if not (target / TRAINING).is_file():
        settings = Settings(
            model=str(trial.base),
            method="full",
            parts=PARTS,
            epochs=trial.plan.epochs,
            learning_rate=trial.plan.learning_rate,
            batch_size=trial.plan.batch_size,
            seed=trial.seed,
        )
        finetune(settings, trial.folder / EXAMPLES, trial.folder / "drawn" / folder_name(rate), target)
    return target


def _audited(trial: _Trial, model: Path, rate: int) -> Audit:
    """The audit of one model; that of the control, which saw no record, asks for those that the others saw."""
    output = trial.folder / f"audit-{folder_name(rate)}"
    settings = AuditSettings(
        candidates=trial.plan.candidates,
        style=STYLE,
        record_fields=FIELDS,
        drawing_seed=trial.seed,
        seed=trial.seed,
    )
    audit = run_audit(
        model,
        trial.base,
        trial.folder / EXAMPLES,
        trial.folder / "drawn" / folder_name(rate or max(RATES)),
        trial.folder / "images",
        trial.seen,
        trial.unseen,
        output,
        settings,
    )
    write_report(audit, verdict_of(audit), output, probe=trial.folder / "probe")
    return audit


def _result(trial: _Trial, rate: int, report: ProbeReport, audit: Audit) -> RateResult:
    best = report.best(f"{rate}%", NEW_RECORDS)
    return RateResult(
        seed=trial.seed,
        rate=rate,
        layer=f"{best.layer}, {best.pooling}",
        accuracy=Interval(best.accuracy, best.low, best.high),
        chance=best.chance,
        p_value=best.p_any_layer,
        auc=audit.membership.auc,
        exposure=audit.exposure.mean,
        expected_exposure=audit.exposure.expected,
        outcome=verdict_of(audit).outcome,
    )


def _interval(interval: Interval) -> str:
    return f"{interval.estimate:.3f} ({interval.low:.3f}-{interval.high:.3f})"


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(folder, error) from error
