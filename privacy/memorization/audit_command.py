"""The commands of `memorization` with a verdict: `audit`, and `experiment`, which shows that it finds what is there."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

_REMEMBERS = 1
_FIELDS = ("username", "user_id", "gender", "age", "captured", "place")


def register(commands: argparse._SubParsersAction[Any]) -> None:
    """Adds the two commands; each sets `run`, which takes the parsed arguments and raises PrivacyError."""
    _add_audit(
        commands.add_parser(
            "audit",
            help="a verdict: does a model's loss give away the records it was fine-tuned on?",
            description="Measures exposure and membership inference; writes audit.json and report.html, and prints the "
            "verdict. Exit status 1 if the model remembers: the lower confidence bound of the AUC is above the bound.",
            allow_abbrev=False,
        )
    )
    _add_experiment(
        commands.add_parser(
            "experiment",
            help="train small models with and without private data, and audit them",
            description="Trains a small multimodal model, fine-tunes it on images that hold private text at several "
            "rates, probes and audits each; writes experiment.json, experiment.png and everything in between.",
            allow_abbrev=False,
        )
    )


def _add_audit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, metavar="PLACE", help="the fine-tuned model or adapter")
    parser.add_argument("--base", required=True, metavar="PLACE", help="the model that it was fine-tuned from")
    parser.add_argument(
        "--examples", type=Path, required=True, metavar="FILE", help="the .jsonl that it was fine-tuned on"
    )
    parser.add_argument(
        "--drawn", type=Path, required=True, metavar="FOLDER", help="the images it was fine-tuned on, as of embed"
    )
    parser.add_argument(
        "--images", type=Path, required=True, metavar="FOLDER", help="the images that embed drew records into"
    )
    parser.add_argument("--seen", type=Path, required=True, metavar="FILE", help=".jsonl of the records it drew")
    parser.add_argument(
        "--unseen", type=Path, required=True, metavar="FILE", help=".jsonl of records made alike that it never drew"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="interrupted work goes on there")
    parser.add_argument(
        "--bound-auc", type=float, default=0.6, metavar="AUC", help="that is tolerated (default: 0.6; guessing: 0.5)"
    )
    parser.add_argument("--canaries", type=_count, metavar="N", help="that many of the seen records (default: all)")
    parser.add_argument(
        "--candidates",
        type=_count,
        default=31,
        metavar="N",
        help="unseen ones beside each (default: 31)",
    )
    parser.add_argument("--batch-size", type=_count, default=16, metavar="N", help="(default: 16)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of choices and bootstrap (default: 0)")
    parser.add_argument("--probe", type=Path, metavar="FOLDER", help="results of `probe` to show in the report")
    parser.add_argument("--gradients", type=Path, metavar="FOLDER", help="results of `gradients` to show in the report")
    _add_style(parser)
    parser.set_defaults(run=_audit)


def _add_style(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how the records were drawn: what embed was called with")
    group.add_argument("--position", default="top-left", metavar="PLACE", help="(default: top-left)")
    group.add_argument("--size", type=float, default=0.05, metavar="SHARE", help="of the height (default: 0.05)")
    group.add_argument("--opacity", type=float, default=1.0, metavar="SHARE", help="(default: 1)")
    group.add_argument("--font", default="built-in", metavar="FILE", help="or dejavu (default: built-in)")
    group.add_argument("--fields", nargs="+", choices=_FIELDS, default=_FIELDS, help="of the record (default: all)")
    group.add_argument("--drawing-seed", type=int, default=0, metavar="N", help="--seed of embed (default: 0)")


def _add_experiment(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="interrupted work goes on there")
    parser.add_argument("--seeds", type=_count, default=1, metavar="N", help="repetitions (default: 1)")
    parser.set_defaults(run=_experiment)


def _audit(arguments: argparse.Namespace) -> int:
    from privacy.memorization.audit import AuditSettings, run_audit
    from privacy.memorization.drawing import Style
    from privacy.memorization.records import read_records
    from privacy.memorization.report import HTML, check_bound, summary, verdict_of, write_report

    check_bound(arguments.bound_auc)
    settings = AuditSettings(
        canaries=arguments.canaries,
        candidates=arguments.candidates,
        style=Style(arguments.position, arguments.size, arguments.opacity, arguments.font),
        record_fields=tuple(arguments.fields),
        drawing_seed=arguments.drawing_seed,
        batch_size=arguments.batch_size,
        seed=arguments.seed,
    )
    audit = run_audit(
        arguments.model,
        arguments.base,
        arguments.examples,
        arguments.drawn,
        arguments.images,
        read_records(arguments.seen),
        read_records(arguments.unseen),
        arguments.output,
        settings,
    )
    verdict = verdict_of(audit, arguments.bound_auc)
    write_report(audit, verdict, arguments.output, probe=arguments.probe, gradients=arguments.gradients)
    print(summary(audit, verdict))
    print(arguments.output / HTML)
    return _REMEMBERS if verdict.outcome == "remembers" else 0


def _experiment(arguments: argparse.Namespace) -> None:
    from privacy.memorization.experiment import run_experiment

    print(run_experiment(arguments.output, seeds=arguments.seeds).table())


def _count(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError("is not a whole number from 1")
    return number
