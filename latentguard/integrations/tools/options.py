"""The command-line options that say where the tools are: in this process, or on a running service."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from latentguard.errors import AgentError

if TYPE_CHECKING:
    from latentguard.integrations.tools.local import LocalTools
    from latentguard.integrations.tools.remote import RemoteTools

API_KEY_VARIABLE = "LATENTGUARD_API_KEY"
_MOST_KEY_BYTES = 4096


def add_tool_options(parser: argparse.ArgumentParser) -> None:
    """The options that `remote_tools` and `local_tools` read."""
    service = parser.add_argument_group("tools of a running service")
    service.add_argument("--url", metavar="URL", help="the service, such as https://127.0.0.1:8443")
    service.add_argument(
        "--api-key-file",
        type=Path,
        metavar="FILE",
        help=f"where its API key stands, which never is an argument itself (default: the environment's "
        f"{API_KEY_VARIABLE})",
    )
    service.add_argument("--certificate", type=Path, metavar="FILE", help="PEM of its authority, if it is self-signed")
    here = parser.add_argument_group("tools in this process")
    here.add_argument("--guard", metavar="NAME_OR_DIR", help="the guard's weights (default: embedded)")
    here.add_argument("--pipeline", metavar="NAME_OR_DIR", help="a diffusers pipeline (default: none)")
    here.add_argument(
        "--classifier",
        action="append",
        metavar="NAME_OR_DIR",
        help="a network of encrypted inference; may be repeated (default: mnist)",
    )


def check_tool_options(arguments: argparse.Namespace) -> None:
    """AgentError for options that don't go together."""
    if arguments.url is None and (arguments.api_key_file or arguments.certificate):
        raise AgentError("--api-key-file and --certificate go with --url")
    if arguments.url is not None and (arguments.guard or arguments.pipeline or arguments.classifier):
        raise AgentError(
            "--url takes the service's guard, pipeline and classifiers; leave --guard, --pipeline and --classifier out"
        )


def remote_tools(arguments: argparse.Namespace) -> RemoteTools:
    """The tools of the service at ``--url``. Raises AgentError, KeyFileError."""
    from latentguard.integrations.tools.remote import RemoteTools
    from privacy.files import read_secret

    key = os.environ.get(API_KEY_VARIABLE) or None
    if arguments.api_key_file is not None:
        try:
            key = read_secret(arguments.api_key_file, _MOST_KEY_BYTES).decode("ascii").strip()
        except UnicodeDecodeError:
            raise AgentError(f"{arguments.api_key_file}: holds no API key") from None
    return RemoteTools.connect(arguments.url, key, arguments.certificate)


def local_tools(arguments: argparse.Namespace) -> LocalTools:
    """The tools of this process. Raises LatentGuardError, PrivacyError."""
    from latentguard.integrations.tools.local import load_tools

    return load_tools(
        model=arguments.guard, pipeline=arguments.pipeline, classifiers=arguments.classifier or ("mnist",)
    )
