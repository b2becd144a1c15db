"""A small experiment with known truth: do the audit's tools find what is there, and nothing where there is nothing?

A small LLaVA that reads (`small_model`) is fine-tuned on images of shapes with made-up user ids drawn into 0, 50 and
100% of them, on questions that have nothing to do with the ids. Then it is probed and audited with the commands of this
package, just as any other model would be.

What makes a model remember task-irrelevant text is that it helps to answer what can't be answered from the picture. So
the answers here are drawn at random, in two ways:

`by image`: for each image anew, as the free answers of real data are to the part that isn't in the picture. The text
has nothing to do with them; but it helps to tell one image from all others, and so to learn them by heart. That is the
spurious correlation within mini-batches which Ju et al. (arXiv 2503.01208) found to be the cause.

`by user`: once for each user, who answers all questions of one kind alike. It is the positive control: here the text
does tell the answer, and a model that learns it carries it over to new images.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

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
    SHAPES,
    STYLE,
    WHICH_COLOUR,
    WHICH_SHAPE,
    draw_scene,
    pretrain,
)

RATES = (0, 50, 100)
UNTUNED = "before"
RESULTS, CHART = "experiment.json", "experiment.png"

Answers = Literal["by image", "by user"]
ANSWERS: tuple[Answers, ...] = ("by image", "by user")

_PRETRAINING = "pretraining.json"
_QUESTIONS = ((WHICH_COLOUR, tuple(COLOURS)), (WHICH_SHAPE, SHAPES))


@dataclass(frozen=True)
class Plan:
    """The size of the experiment.

    users: whose ids are drawn into fine-tuning images; as many others are never seen. images_per_user: a multiple of
    four, so that at 50%, too, each user is in as many. held_out: new images a pair of a seen and an unseen user is
    probed on.
    """

    pretraining_steps: int = 1500
    users: int = 120
    images_per_user: int = 4
    epochs: int = 20
    learning_rate: float = 1e-3
    batch_size: int = 16
    held_out: int = 4
    features: Features = "quadratic"
    permutations: int = 100
    candidates: int = 15


@dataclass(frozen=True)
class RateResult:
    """What was found at one rate: the best layer's probe accuracy, with its 95% interval and p value, and the audit.

    The p value is corrected for having looked at all layers.
    """

    seed: int
    answers: Answers
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
            f"{'seed':>4}  {'answers':9}{'rate':>5}  {'probe':22}{'p':>6}  {'membership AUC':22}{'bits':>5}  verdict",
        ]
        lines += [
            f"{each.seed:>4}  {each.answers:9}{each.rate:>4}%  {_interval(each.accuracy):22}{each.p_value:>6.3f}  "
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
    figure = Figure(figsize=(9, 7), layout="constrained")
    for row, answers in zip(figure.subplots(2, 2, sharey=True), ANSWERS, strict=True):
        for seed in sorted({each.seed for each in results}):
            own = [each for each in results if (each.seed, each.answers) == (seed, answers)]
            for axes, found in zip(row, ([each.accuracy for each in own], [each.auc for each in own]), strict=True):
                _draw_line(axes, [each.rate + 2 * seed for each in own], found, f"repetition {seed + 1}")
        for axes, title in zip(row, ("probe accuracy, best layer", "membership AUC"), strict=True):
            axes.axhline(0.5, color="#555555", linestyle=":", linewidth=1)
            axes.set(title=f"{title}; answers {answers}", xticks=RATES, ylim=(0.35, 1.02))
            axes.set_xlabel("fine-tuning images with private text, %")
        row[0].legend(loc="upper left", fontsize="small")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def _draw_line(axes: Any, rates: Sequence[float], found: Sequence[Interval], label: str) -> None:
    values = [each.estimate for each in found]
    below = [each.estimate - each.low for each in found]
    above = [each.high - each.estimate for each in found]
    axes.errorbar(rates, values, (below, above), marker="o", capsize=3, label=label)


def _repetition(base: Path, folder: Path, plan: Plan, seed: int) -> list[RateResult]:
    records = generate(2 * plan.users, seed=seed)
    seen, unseen = records[: plan.users], records[plan.users :]
    _draw_images(folder, plan, seed)
    write_records(folder / "seen.jsonl", seen)
    write_records(folder / "unseen.jsonl", unseen)
    embed(
        folder / "images",
        seen,
        folder / "drawn",
        rates=RATES,
        style=STYLE,
        fields=FIELDS,
        seed=seed,
        reuse=True,
        workers=1,
    )
    results: list[RateResult] = []
    for answers in ANSWERS:
        work = folder / answers.replace(" ", "-")
        _make(work)
        _write_examples(folder, work / "examples.jsonl", answers, seed)
        results += _trial(_Trial(base, folder, work, seen, unseen, plan, seed), answers)
    return results


@dataclass(frozen=True)
class _Trial:
    """One way to answer in one repetition: `folder` has what both ways share, `work` what is its own."""

    base: Path
    folder: Path
    work: Path
    seen: Sequence[PrivateRecord]
    unseen: Sequence[PrivateRecord]
    plan: Plan
    seed: int


def _trial(trial: _Trial, answers: Answers) -> list[RateResult]:
    models = {rate: _finetuned(trial, rate) for rate in RATES}
    report = probe_models(
        {UNTUNED: trial.base, **{f"{rate}%": place for rate, place in models.items()}},
        trial.folder / "held-out",
        trial.seen,
        trial.unseen,
        trial.work / "probe",
        ProbeSettings(
            images_per_record=trial.plan.held_out,
            style=STYLE,
            record_fields=FIELDS,
            prompt=WHICH_COLOUR,
            designs=_DESIGNS,
            features=trial.plan.features,
            permutations=trial.plan.permutations,
            seed=trial.seed,
        ),
    )
    return [_result(trial, answers, rate, report, _audited(trial, models[rate], rate)) for rate in RATES]


_DESIGNS: tuple[Design, ...] = (NEW_RECORDS,)


def _draw_images(folder: Path, plan: Plan, seed: int) -> None:
    """Images to fine-tune on, and others to probe with."""
    rng = random.Random(f"images {seed}")
    for name, count in (("images", plan.images_per_user), ("held-out", plan.held_out)):
        _draw_scenes(folder / name, [f"{number:04}.png" for number in range(plan.users * count)], rng)


def _write_examples(folder: Path, path: Path, answers: Answers, seed: int) -> None:
    """A question and an answer for each image; whose it is, the manifest of the highest rate says."""
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        for number, entry in enumerate(read_manifest(folder / "drawn" / folder_name(max(RATES)) / MANIFEST)):
            question, choices = _QUESTIONS[number % len(_QUESTIONS)]
            key = entry.record if answers == "by user" else entry.image
            answer = random.Random(f"answer {seed} {question} {key}").choice(choices)
            print(json.dumps({"image": entry.image, "question": question, "answer": answer}), file=file)


def _draw_scenes(folder: Path, names: Sequence[str], rng: random.Random) -> None:
    _make(folder)
    for name in names:
        image, _ = draw_scene(rng)
        with atomic_path(folder / name) as temporary:
            image.save(temporary, format="PNG")


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
    target = trial.work / f"model-{folder_name(rate)}"
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
        finetune(settings, trial.work / "examples.jsonl", trial.folder / "drawn" / folder_name(rate), target)
    return target


def _audited(trial: _Trial, model: Path, rate: int) -> Audit:
    """The audit of one model; that of the control, which saw no record, asks for those that the others saw."""
    output = trial.work / f"audit-{folder_name(rate)}"
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
        trial.work / "examples.jsonl",
        trial.folder / "drawn" / folder_name(rate or max(RATES)),
        trial.folder / "images",
        trial.seen,
        trial.unseen,
        output,
        settings,
    )
    write_report(audit, verdict_of(audit), output, probe=trial.work / "probe")
    return audit


def _result(trial: _Trial, answers: Answers, rate: int, report: ProbeReport, audit: Audit) -> RateResult:
    best = report.best(f"{rate}%", NEW_RECORDS)
    return RateResult(
        seed=trial.seed,
        answers=answers,
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
