"""`passkey finetune`: trains a model on encrypted text, on plain text, or on both to compare them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

_TASKS = ("classification", "tagging", "pairs", "summarisation", "translation")


def register(commands: argparse._SubParsersAction[Any]) -> None:
    """Adds the command; it sets `run`, which takes the parsed arguments and raises PrivacyError."""
    parser = commands.add_parser(
        "finetune",
        help="fine-tune a model on encrypted text, and compare it with a plain one",
        description="Converts a model to a passkey, fine-tunes it on encrypted text, and prints a table. With "
        "--compare the plain model is trained as well, on the same data in the same order.",
        allow_abbrev=False,
    )
    _add_data(parser)
    _add_encryption(parser)
    _add_training(parser)
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="a new folder for the models")
    parser.add_argument("--resume", action="store_true", help="go on in --output, from the last checkpoint")
    parser.set_defaults(run=_finetune)


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--task", choices=_TASKS, required=True, help="what the model shall learn")
    parser.add_argument("--model", required=True, metavar="FOLDER", help="a plain Hugging Face model")
    parser.add_argument(
        "--train",
        required=True,
        metavar="DATA",
        help=".tsv, .csv, .jsonl or .parquet; for tagging also a CoNLL .txt; or hub:NAME[:CONFIG[:SPLIT]]",
    )
    measured = parser.add_mutually_exclusive_group(required=True)
    measured.add_argument("--eval", metavar="DATA", help="what to measure with, of the same kinds")
    measured.add_argument(
        "--hold-out",
        type=float,
        metavar="SHARE",
        help="measure with this share of the training data instead, to choose settings by",
    )
    parser.add_argument(
        "--columns",
        nargs="+",
        metavar="NAME",
        help="classification: text and label (default: sentence label); pairs: (premise hypothesis label); tagging: "
        "(tokens tags), or the columns' numbers in a CoNLL file; summarisation: (document summary); translation: "
        "(source target), translation.en reaches into objects",
    )
    parser.add_argument("--limit", type=int, metavar="N", help="train on N examples, drawn at random")
    parser.add_argument(
        "--max-length", type=int, default=128, metavar="N", help="tokens that a text is cut at (default: 128)"
    )
    parser.add_argument("--prefix", default="", metavar="TEXT", help="put before each text, as in 'summarize: ' for T5")


def _add_encryption(parser: argparse.ArgumentParser) -> None:
    runs = parser.add_mutually_exclusive_group()
    runs.add_argument("--compare", action="store_true", help="train the plain model, too")
    runs.add_argument("--plain", action="store_true", help="train the plain model only; needs no passkey")
    parser.add_argument(
        "--passkey-file",
        type=Path,
        metavar="FILE",
        help="where the passkey stands (default: the environment's PRIVACY_PASSKEY, or a prompt)",
    )
    parser.add_argument(
        "--transform", choices=("glide", "orthogonal", "none"), default="glide", help="of embeddings (default: glide)"
    )
    parser.add_argument("--factor", type=int, default=1, metavar="N", help="glide reflections (default: 1)")
    parser.add_argument("--noise", type=float, default=0.0, metavar="SHARE", help="on the embeddings (default: 0)")
    parser.add_argument(
        "--no-carry", action="store_true", help="map the embeddings alone, and leave it to the training to follow"
    )
    parser.add_argument("--converted", metavar="FOLDER", help="train this conversion of --model, made before")


def _add_training(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--epochs", type=float, default=3.0, metavar="N", help="may be a fraction (default: 3)")
    parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="(default: 32)")
    parser.add_argument("--learning-rate", type=float, default=5e-5, metavar="R", help="(default: 5e-5)")
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32", help="(default: fp32)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="(default: 0)")


def _finetune(arguments: argparse.Namespace) -> None:
    from privacy.passkey.finetune import finetune
    from privacy.passkey.keys import PassKey
    from privacy.passkey.results import Settings
    from privacy.passkey.training import Hyperparameters
    from privacy.passkey.transforms import Transform

    carried = arguments.transform != "none" and not arguments.no_carry
    settings = Settings(
        task=arguments.task,
        model=arguments.model,
        train=arguments.train,
        evaluation=arguments.eval,
        hold_out=arguments.hold_out,
        columns=None if arguments.columns is None else tuple(arguments.columns),
        limit=arguments.limit,
        max_length=arguments.max_length,
        prefix=arguments.prefix,
        how=Hyperparameters(
            epochs=arguments.epochs,
            batch_size=arguments.batch_size,
            learning_rate=arguments.learning_rate,
            precision=arguments.precision,
            seed=arguments.seed,
        ),
        transform=Transform(arguments.transform, arguments.factor, arguments.noise, carried=carried),
        converted=arguments.converted,
    )
    passkey = None
    if not arguments.plain:
        new = arguments.converted is None and not arguments.resume
        passkey = PassKey.obtain(arguments.passkey_file, new=new)
    plain = arguments.plain or arguments.compare
    print(finetune(settings, arguments.output, passkey, plain=plain, resume=arguments.resume).table())
