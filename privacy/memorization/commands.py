"""The commands of `memorization`, each group in a file of its own."""

from __future__ import annotations

import argparse
from typing import Any

from privacy.memorization import audit_command, data_command, model_command, signal_command


def register(commands: argparse._SubParsersAction[Any]) -> None:
    """Adds `memorization` with its commands; each sets `run`, which takes parsed arguments and raises PrivacyError."""
    parser = commands.add_parser(
        "memorization", help="whether a model remembers private data it was fine-tuned on", allow_abbrev=False
    )
    inner = parser.add_subparsers(metavar="COMMAND", required=True)
    for group in (data_command, model_command, signal_command, audit_command):
        group.register(inner)
