"""`passkey attack`: measures what a converted model protects, by attacking it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from privacy.errors import AttackError

_WORDS = (1_000, 10_000, 100_000)


def register(commands: argparse._SubParsersAction[Any]) -> None:
    """Adds the command; it sets `run`, which takes the parsed arguments and raises PrivacyError."""
    parser = commands.add_parser(
        "attack",
        help="measure what a converted model protects",
        description="Attacks converted models as their server's operator could, and prints how much of a text is read. "
        "The passkey is needed to encrypt that text and to score what is found; no attack uses it.",
        allow_abbrev=False,
    )
    parser.add_argument("--original", type=Path, required=True, metavar="FOLDER", help="the model that was converted")
    parser.add_argument(
        "--converted",
        type=Path,
        nargs="+",
        required=True,
        metavar="FOLDER",
        help="what the server has of it; several, under one passkey, are compared, and the first linked to the last",
    )
    parser.add_argument("--observed", type=Path, required=True, metavar="FILE", help="UTF-8 text that is encrypted")
    parser.add_argument("--known", type=Path, required=True, metavar="FILE", help="other text of the same kind")
    parser.add_argument(
        "--words",
        type=_count,
        nargs="+",
        default=_WORDS,
        metavar="N",
        help="how much of --known the attacker has (default: 1000 10000 100000)",
    )
    parser.add_argument("--chart", type=Path, metavar="FILE", help="draw the figures to a .png, .svg or .pdf")
    parser.add_argument(
        "--passkey-file",
        type=Path,
        metavar="FILE",
        help="where the passkey stands (default: the environment's PRIVACY_PASSKEY, or a prompt)",
    )
    parser.set_defaults(run=_attack)


def _attack(arguments: argparse.Namespace) -> None:
    from transformers.utils import logging

    from privacy.passkey.attacks.corpus import read_lines
    from privacy.passkey.attacks.cost import agreement
    from privacy.passkey.attacks.report import as_table, check_chart_name, draw_chart
    from privacy.passkey.attacks.trial import Texts, folder_name, run
    from privacy.passkey.keys import PassKey

    if arguments.chart is not None:
        check_chart_name(arguments.chart)
    if len(set(arguments.converted)) < len(arguments.converted):
        raise AttackError("--converted: one folder stands there twice")
    observed, known = read_lines(arguments.observed), read_lines(arguments.known)
    passkey = PassKey.obtain(arguments.passkey_file)
    logging.set_verbosity_error()
    logging.disable_progress_bar()  # there are others, for what takes longer than loading
    texts = Texts.of(arguments.original, observed, known, arguments.words)
    outcomes = run(arguments.original, arguments.converted, passkey, texts)
    costs = {
        folder_name(folder): agreement(arguments.original, folder, passkey, observed) for folder in arguments.converted
    }
    print(as_table(outcomes, costs))
    if arguments.chart is not None:
        draw_chart(outcomes, arguments.chart)


def _count(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError("is not a whole number from 1")
    return number
