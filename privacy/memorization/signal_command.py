"""The commands of `memorization` that look for traces of private content in a model: `gradients` and `probe`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def register(commands: argparse._SubParsersAction[Any]) -> None:
    """Adds the two commands; each sets `run`, which takes the parsed arguments and raises PrivacyError."""
    _add_gradients(
        commands.add_parser(
            "gradients",
            help="how far private text in images turns a model's gradients, layer by layer",
            description="Compares gradients of batches with and without private text, beside augmented, paraphrased, "
            "changed and other batches; writes gradients.csv, gradients.json and heatmap.png, and prints a table.",
            allow_abbrev=False,
        )
    )
    _add_probe(
        commands.add_parser(
            "probe",
            help="whether hidden states tell records that a model has seen from others, layer by layer",
            description="Trains probes on the hidden states of held-out images with seen and unseen records; writes "
            "probe.csv, probe.json, layers.png and tsne.png, and prints a table.",
            allow_abbrev=False,
        )
    )


def _add_gradients(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, metavar="PLACE", help="a folder, of an adapter too, or a hub id")
    parser.add_argument(
        "--pairs",
        nargs=2,
        type=Path,
        required=True,
        metavar=("WITHOUT", "WITH"),
        help="two folders of `embed` with the same images, as r000 and r100",
    )
    parser.add_argument(
        "--examples", type=Path, required=True, metavar="FILE", help=".jsonl of image, question (or none) and answer"
    )
    parser.add_argument(
        "--paraphrases",
        type=Path,
        metavar="FILE",
        help="like --examples line by line, in other words (default: synonyms of a built-in table)",
    )
    _add_output(parser)
    parser.add_argument("--batches", type=int, default=4, metavar="N", help="averaged over (default: 4)")
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="examples of a batch (default: 8)")
    parser.add_argument(
        "--micro-batch-size",
        type=int,
        default=1,
        metavar="N",
        help="examples that pass through a model that writes at a time (default: 1)",
    )
    parser.add_argument(
        "--memory", type=float, default=2.0, metavar="GIB", help="for sums of gradients, or a layer's (default: 2)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="(default: 0)")
    parser.set_defaults(run=_gradients)


def _add_probe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        action="append",
        required=True,
        type=_named,
        dest="models",
        metavar="NAME=PLACE",
        help="a folder or hub id; the first is the model without fine-tuning, which the others are compared with",
    )
    parser.add_argument(
        "--images", type=Path, required=True, metavar="FOLDER", help="images that no model was fine-tuned on"
    )
    parser.add_argument(
        "--records",
        nargs=2,
        type=Path,
        required=True,
        metavar=("SEEN", "UNSEEN"),
        help=".jsonl of records drawn into the fine-tuning images, and of others made in the same way",
    )
    _add_output(parser)
    parser.add_argument(
        "--images-per-record", type=int, default=4, metavar="N", help="that a pair of records gets (default: 4)"
    )
    parser.add_argument(
        "--prompt", default="What is shown in the image?", help="what a model that writes is asked about each image"
    )
    _add_style(parser)
    _add_probing(parser)
    parser.set_defaults(run=_probe)


def _add_style(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how records are drawn: as they were for the fine-tuning")
    group.add_argument("--position", default="top-left", metavar="PLACE", help="as of `embed` (default: top-left)")
    group.add_argument("--size", type=float, default=0.05, metavar="SHARE", help="of the height (default: 0.05)")
    group.add_argument("--opacity", type=float, default=1.0, metavar="SHARE", help="(default: 1)")
    group.add_argument("--font", default="built-in", metavar="FILE", help="or dejavu (default: built-in)")
    group.add_argument("--fields", nargs="+", metavar="FIELD", help="of the records (default: all six)")


def _add_probing(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the probes")
    group.add_argument(
        "--design",
        choices=("new-records", "known-records", "both"),
        default="both",
        help="whether a probe is tested on records that it wasn't trained on, or on other images of the same ones",
    )
    group.add_argument(
        "--features",
        choices=("linear", "quadratic"),
        default="linear",
        help="quadratic adds squares, for what sets seen records apart by size and not direction (default: linear)",
    )
    group.add_argument("--folds", type=int, default=5, metavar="N", help="of cross-validation (default: 5)")
    group.add_argument(
        "--permutations", type=_count, default=200, metavar="N", help="of labels, for p values (default: 200)"
    )
    group.add_argument("--batch-size", type=_count, default=16, metavar="N", help="of a CLIP-like model (default: 16)")
    group.add_argument("--jobs", type=_count, default=1, metavar="N", help="processes (default: 1)")
    group.add_argument("--seed", type=int, default=0, metavar="N", help="(default: 0)")


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output", type=Path, required=True, metavar="FOLDER", help="for the results; interrupted work goes on there"
    )


def _gradients(arguments: argparse.Namespace) -> None:
    from privacy.memorization.compare_gradients import GradientSettings, compare_gradients

    settings = GradientSettings(
        batches=arguments.batches,
        batch_size=arguments.batch_size,
        micro_batch_size=arguments.micro_batch_size,
        memory=int(arguments.memory * 2**30),
        seed=arguments.seed,
    )
    without, with_text = arguments.pairs
    report = compare_gradients(
        arguments.model,
        without,
        with_text,
        arguments.examples,
        arguments.output,
        settings,
        paraphrases=arguments.paraphrases,
    )
    print(report.table())


def _probe(arguments: argparse.Namespace) -> None:
    from privacy.errors import MemorizationError
    from privacy.memorization.drawing import Style
    from privacy.memorization.probe_models import ProbeSettings, probe_models
    from privacy.memorization.probing import DESIGNS
    from privacy.memorization.records import FIELDS, read_records

    models = dict(arguments.models)
    if len(models) < len(arguments.models):
        raise MemorizationError("two models have the same name")
    chosen = tuple(each for each in DESIGNS if arguments.design in ("both", each.replace(" ", "-")))
    settings = ProbeSettings(
        images_per_record=arguments.images_per_record,
        style=Style(arguments.position, arguments.size, arguments.opacity, arguments.font),
        record_fields=tuple(arguments.fields or FIELDS),
        prompt=arguments.prompt,
        designs=chosen,
        features=arguments.features,
        folds=arguments.folds,
        permutations=arguments.permutations,
        seed=arguments.seed,
        jobs=arguments.jobs,
        batch_size=arguments.batch_size,
    )
    seen, unseen = (read_records(path) for path in arguments.records)
    print(probe_models(models, arguments.images, seen, unseen, arguments.output, settings).table())


def _named(text: str) -> tuple[str, str]:
    name, equals, place = text.partition("=")
    if not name or not equals or not place:
        raise argparse.ArgumentTypeError("is not of the form NAME=PLACE")
    return name, place


def _count(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError("is not a whole number from 1")
    return number
