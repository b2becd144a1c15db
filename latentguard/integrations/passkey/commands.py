"""The commands `blind` and `blind-evaluate`."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_blind(parser: argparse.ArgumentParser) -> None:
    """The options of ``blind``."""
    _add_weights(parser)
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="the server's new folder")
    conversion = parser.add_mutually_exclusive_group()
    conversion.add_argument(
        "--transform",
        choices=("none", "orthogonal", "glide"),
        default="none",
        help="how the encoder's embeddings are mapped beside being permuted (default: none: scores stay what they are)",
    )
    conversion.add_argument(
        "--converted", type=Path, metavar="FOLDER", help="or the encoder as `python -m privacy passkey` wrote it before"
    )
    parser.add_argument(
        "--no-words",
        action="store_true",
        help="let messages hold token ids alone; names that a prompt spells out then don't count",
    )
    add_passkey_file(parser)
    parser.set_defaults(run=_blind)


def add_blind_evaluate(parser: argparse.ArgumentParser) -> None:
    """The options of ``blind-evaluate``."""
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="what `blind` wrote")
    parser.add_argument(
        "--data",
        type=Path,
        nargs="+",
        required=True,
        metavar="FILE",
        help="prompt files, with a column 'unsafe' (0 or 1) where labels are known",
    )
    parser.add_argument("--column", default="prompt", help="the column that holds the prompts (default: prompt)")
    parser.add_argument("--plain", metavar="NAME_OR_DIR", help="the plain guard's weights (default: embedded)")
    parser.add_argument("--precision", help="the embedded encoder's arithmetic: int8 or fp32 (default: its fastest)")
    add_passkey_file(parser)
    parser.set_defaults(run=_blind_evaluate)


def add_passkey_file(parser: argparse.ArgumentParser) -> None:
    """The option that tells where the passkey stands, which never is an argument itself."""
    parser.add_argument(
        "--passkey-file",
        type=Path,
        metavar="FILE",
        help="where the passkey stands (default: the environment's PRIVACY_PASSKEY, or a prompt)",
    )


def _add_weights(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--weights", metavar="NAME_OR_DIR", help="shipped weights, a folder or a hub id (default: embedded)"
    )
    parser.add_argument(
        "--original",
        metavar="NAME",
        help="the encoder before its conversion, which only weights trained over a converted one don't tell",
    )


def _blind(arguments: argparse.Namespace) -> None:
    from latentguard.integrations.passkey.keyholder import blind
    from privacy.passkey.keys import PassKey

    folder = blind(
        arguments.weights,
        arguments.output,
        PassKey.obtain(arguments.passkey_file, new=arguments.converted is None),
        transform=arguments.transform,
        converted=arguments.converted,
        original=arguments.original,
        words=not arguments.no_words,
    )
    print(f"wrote {folder}: give clients its blind.json and encoder/passkey.json, and the server all of it")
    if arguments.converted is not None or arguments.transform != "none":
        print("what the conversion changed in the scores, blind-evaluate tells")


def _blind_evaluate(arguments: argparse.Namespace) -> None:
    from latentguard.evaluation import read_evaluation_set
    from latentguard.guard import LatentGuard
    from latentguard.integrations.passkey.client import BlindClient
    from latentguard.integrations.passkey.comparison import compare, markdown_table
    from latentguard.integrations.passkey.guard import BlindGuard
    from privacy.passkey.keys import PassKey

    passkey = PassKey.obtain(arguments.passkey_file)
    sets = [read_evaluation_set(path, column=arguments.column) for path in arguments.data]
    plain = LatentGuard.from_pretrained(arguments.plain, precision=arguments.precision)
    client = BlindClient(arguments.folder, passkey, original=plain.encoder.name)
    blind = BlindGuard.from_pretrained(arguments.folder, precision=arguments.precision)
    print(markdown_table([compare(plain, blind, client, data) for data in sets]), end="")
