"""Probes models, before and after fine-tuning, for the private records that they have seen; writes table and charts.

    report = probe_models({"w/o fine-tuning": base, "50%": half, "100%": full}, images, seen, unseen, output)
    print(report.table())

`output` gets probe.csv and probe.json (a row a model, design, layer and pooling), layers.png, tsne.png, the drawn
images and the hidden states. A call that was interrupted goes on where it was.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch

from privacy.errors import DataError, MemorizationError
from privacy.files import atomic_path, read_error
from privacy.memorization.collators import Asked, CaptionCollator, QuestionCollator
from privacy.memorization.drawing import Style
from privacy.memorization.finetune import TRAINING
from privacy.memorization.models import LoadedModel, load_model
from privacy.memorization.plots import Curve, Panel, draw_layers, draw_tsne
from privacy.memorization.probing import DESIGNS, Design, Difference, Features, difference, p_any_layer, probe_layers
from privacy.memorization.records import FIELDS, PrivateRecord
from privacy.memorization.states import LAST, MEAN, POOLINGS, States, write_states
from privacy.memorization.views import View, draw_views, layout_of

RESULTS = "probe.json"

_POOLED = {MEAN: "mean over tokens", LAST: "last token"}


@dataclass(frozen=True)
class ProbeSettings:
    """How models are probed.

    images_per_record: held-out images that a pair of records shares. style, record_fields: as when the records were
    drawn into the fine-tuning images. prompt: what a multimodal model is asked about each image; a CLIP-like one reads
    the record's text instead. features, folds, permutations, seed: as `probing.probe`. jobs: processes. batch_size: of
    a CLIP-like model.
    """

    images_per_record: int = 4
    style: Style = field(default_factory=Style)
    record_fields: tuple[str, ...] = FIELDS
    prompt: str = "What is shown in the image?"
    designs: tuple[Design, ...] = DESIGNS
    features: Features = "linear"
    folds: int = 5
    permutations: int = 200
    seed: int = 0
    jobs: int = 1
    batch_size: int = 16


@dataclass(frozen=True)
class ProbeRow:
    """The probe of one model at one layer: fields as in `probing.ProbeOutcome` and `probing.Difference`.

    `p_any_layer` is corrected for all layers and poolings of the model and design. The differences, to the first model,
    are None for that one.
    """

    model: str
    design: str
    layer: str
    pooling: str
    accuracy: float
    low: float
    high: float
    chance: float
    p_value: float
    p_any_layer: float
    difference: float | None = None
    difference_low: float | None = None
    difference_high: float | None = None
    difference_p: float | None = None


@dataclass(frozen=True)
class ProbeReport:
    """All rows, with how many pairs of records and images they rest on."""

    pairs: int
    images: int
    rows: tuple[ProbeRow, ...]

    def best(self, model: str, design: str) -> ProbeRow:
        """The row whose accuracy is farthest above its chance."""
        chosen = [row for row in self.rows if (row.model, row.design) == (model, design)]
        return max(chosen, key=lambda row: row.accuracy - row.chance)

    def table(self) -> str:
        """For each design and model the layer whose probe tells most, with the p value of having looked at all."""
        models = list(dict.fromkeys(row.model for row in self.rows))
        width = max(14, *map(len, models)) + 2
        lines = [f"{self.pairs} pairs of a seen and an unseen record, {self.images} images"]
        for design in dict.fromkeys(row.design for row in self.rows):
            heading = f"{design:{width}}{'best layer':26}{'accuracy':>8}  {'95%':13}{'chance':>6}{'p':>7}"
            lines += ["", f"{heading}   above the first"]
            lines += [f"{model:{width}}{_summary(self.best(model, design))}" for model in models]
        return "\n".join(lines)


def probe_models(
    models: Mapping[str, str | Path],
    images: Path,
    seen: Sequence[PrivateRecord],
    unseen: Sequence[PrivateRecord],
    output: Path,
    settings: ProbeSettings | None = None,
) -> ProbeReport:
    """Probes each named model, the first of which is the one without fine-tuning that the others are compared with.

    `images` is a folder of images that no model was fine-tuned on. Where a model's training.json tells what records it
    has seen, the labels are checked: records of `seen` that one of the models with private data hasn't seen are left
    out, as the half of them that fine-tuning at 50% left out.

    Raises:
        MemorizationError: the models or records can't be compared, or something doesn't suffice for the probes.
        DataError: a file can't be read or written.
    """
    settings = settings or ProbeSettings()
    if not models:
        raise MemorizationError("there is no model to probe")
    if any(not name or "/" in name or name.startswith(".") for name in models):
        raise MemorizationError("the name of a model is a file name, without a slash, as in base or rate-50")
    seen = _seen_by_all(models, seen, unseen)
    views = draw_views(
        images,
        seen,
        unseen,
        output / "images",
        images_per_record=settings.images_per_record,
        style=settings.style,
        fields=settings.record_fields,
        seed=settings.seed,
        workers=settings.jobs,
    )
    states = {}
    for name, place in models.items():
        states[name] = states_of(load_model(place), views, output / "states" / name, settings)
    report = probe_states(states, views, settings)
    _write(report, models, settings, output)
    draw_layers(_panels(report), output / "layers.png")
    best = report.best(list(models)[-1], settings.designs[0])
    vectors = {name: each.read(best.layer, best.pooling) for name, each in states.items()}
    draw_tsne(vectors, layout_of(views).seen, output / "tsne.png", layer=f"{best.layer} ({best.pooling})")
    return report


def states_of(loaded: LoadedModel, views: Sequence[View], folder: Path, settings: ProbeSettings) -> States:
    """Writes the hidden states of a model for each view.

    A multimodal model is asked the settings' prompt, one image at a time; a CLIP-like one gets the record's text beside
    the image.
    """
    device = next(loaded.model.parameters()).device
    vlm = loaded.kind == "vlm"
    ask = QuestionCollator(loaded.processor) if vlm else CaptionCollator(loaded.processor)
    options = {"use_cache": False} if vlm else {}

    def batch_of(chosen: Sequence[View]) -> dict[str, Any]:
        asked = [Asked(view.path, *_texts(view, loaded.kind, settings)) for view in chosen]
        return {key: _moved(value, device) for key, value in ask(asked).items()} | options

    described = {
        "kind": loaded.kind,
        "prompt": settings.prompt,
        "fields": list(settings.record_fields),
        "views": [[view.image, view.record.user_id] for view in views],
        "style": asdict(settings.style),
    }
    batch_size = 1 if vlm else settings.batch_size
    return write_states(loaded.model, views, batch_of, folder, batch_size=batch_size, settings=described)


def probe_states(states: Mapping[str, States], views: Sequence[View], settings: ProbeSettings) -> ProbeReport:
    """Probes the states of each named model, for the same views, and compares all with the first.

    Raises:
        MemorizationError: the models' layers differ, or as `probing.probe`.
    """
    layout = layout_of(views)
    places = _places(states)
    rows: list[ProbeRow] = []
    for design in settings.designs:
        first = None
        for name, each in states.items():
            outcomes = probe_layers(
                [(f"{layer}/{pooling}", _Read(each, layer, pooling)) for layer, pooling in places],
                layout,
                design,
                features=settings.features,
                folds=settings.folds,
                permutations=settings.permutations,
                seed=settings.seed,
                jobs=settings.jobs,
            )
            corrected = p_any_layer(outcomes)
            for (layer, pooling), (key, found) in zip(places, outcomes.items(), strict=True):
                row = ProbeRow(
                    model=name,
                    design=design,
                    layer=layer,
                    pooling=pooling,
                    accuracy=found.accuracy,
                    low=found.low,
                    high=found.high,
                    chance=found.chance,
                    p_value=found.p_value,
                    p_any_layer=corrected[key],
                )
                rows.append(row if first is None else _compared(row, difference(found, first[key], seed=settings.seed)))
            first = first or outcomes
    return ProbeReport(layout.pair_count, len(views) // 2, tuple(rows))


def _summary(row: ProbeRow) -> str:
    interval = f"{row.low:.3f}-{row.high:.3f}"
    place = f"{row.layer}, {row.pooling}"
    text = f"{place:26}{row.accuracy:>8.3f}  {interval:13}{row.chance:>6.3f}{row.p_any_layer:>7.3f}"
    return text if row.difference is None else f"{text}   {row.difference:+.3f} (p {row.difference_p:.3f})"


@dataclass(frozen=True)
class _Read:
    """Reads the vectors of a layer when called, in the process that needs them."""

    states: States
    layer: str
    pooling: str

    def __call__(self) -> Any:
        return self.states.read(self.layer, self.pooling)


def _compared(row: ProbeRow, above: Difference) -> ProbeRow:
    return replace(
        row,
        difference=above.value,
        difference_low=above.low,
        difference_high=above.high,
        difference_p=above.p_value,
    )


def _places(states: Mapping[str, States]) -> list[tuple[str, str]]:
    layers = {name: each.layers for name, each in states.items()}
    first, *others = layers
    for name in others:
        if layers[name] != layers[first]:
            raise MemorizationError(f"the models {first} and {name} don't have the same layers")
    return [(layer, pooling) for layer in layers[first] for pooling in POOLINGS]


def _seen_by_all(
    models: Mapping[str, str | Path], seen: Sequence[PrivateRecord], unseen: Sequence[PrivateRecord]
) -> list[PrivateRecord]:
    """The records of `seen` that every model has seen that has seen any, as far as training.json tells."""
    kept = list(seen)
    for name, place in models.items():
        trained = _trained_records(Path(place))
        if not trained:
            continue
        if wrong := sum(record.user_id in trained for record in unseen):
            raise MemorizationError(f"the model {name} was fine-tuned with {wrong} of the unseen records")
        kept = [record for record in kept if record.user_id in trained]
    if not kept:
        raise MemorizationError("none of the seen records was seen by all models that were fine-tuned with records")
    return kept


def _trained_records(folder: Path) -> frozenset[str]:
    path = folder / TRAINING
    if not path.is_file():
        return frozenset()
    try:
        records = json.loads(path.read_text(encoding="utf-8"))["records"]
        return frozenset(str(record) for record in records)
    except OSError as error:
        raise read_error(path, error) from error
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{path}: doesn't tell what records were seen") from None


def _texts(view: View, kind: str, settings: ProbeSettings) -> tuple[str, str]:
    return (settings.prompt, "") if kind == "vlm" else ("", view.record.text(settings.record_fields))


def _moved(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, torch.Tensor) else value


def _write(report: ProbeReport, models: Mapping[str, str | Path], settings: ProbeSettings, output: Path) -> None:
    with atomic_path(output / "probe.csv") as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(each.name for each in fields(ProbeRow))
        writer.writerows([getattr(row, each.name) for each in fields(ProbeRow)] for row in report.rows)
    written = {
        "models": {name: str(place) for name, place in models.items()},
        "settings": asdict(settings),
        **asdict(report),
    }
    with atomic_path(output / RESULTS) as temporary:
        temporary.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")


def _panels(report: ProbeReport) -> list[list[Panel]]:
    """A row for each design and pooling, a column for each tower."""
    designs = dict.fromkeys(row.design for row in report.rows)
    towers = dict.fromkeys(row.layer.partition(".")[0] for row in report.rows)
    return [[_panel(report, design, pooling, tower) for tower in towers] for design in designs for pooling in POOLINGS]


def _panel(report: ProbeReport, design: str, pooling: str, tower: str) -> Panel:
    chosen = [
        row for row in report.rows if (row.design, row.pooling, row.layer.partition(".")[0]) == (design, pooling, tower)
    ]
    curves = {}
    for model in dict.fromkeys(row.model for row in chosen):
        own = [row for row in chosen if row.model == model]
        curves[model] = Curve(
            [row.accuracy for row in own],
            [row.low for row in own],
            [row.high for row in own],
            [row.chance for row in own],
        )
    layers = list(dict.fromkeys(row.layer for row in chosen))
    return Panel(f"{design}: {tower} tower, {_POOLED[pooling]}", layers, curves)
