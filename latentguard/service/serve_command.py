"""The command `serve`."""

from __future__ import annotations

import argparse
from pathlib import Path

from latentguard.service.commands import add_settings_options, service_packages, settings_of

_OPTIONS = ("host", "port", "http_port", "model", "pipeline", "tls_certificate", "tls_key")


def add_serve(parser: argparse.ArgumentParser) -> None:
    """The options of ``serve``; what isn't among them is set in the file or the environment."""
    add_settings_options(parser)
    parser.add_argument("--host", metavar="ADDRESS", help="the address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, metavar="N", help="the port of HTTPS (default: 8443)")
    parser.add_argument("--http-port", type=int, metavar="N", help="the port that redirects there (default: 8080)")
    parser.add_argument(
        "--tls-certificate", type=Path, metavar="FILE", help="PEM, with its chain (default: self-signed)"
    )
    parser.add_argument("--tls-key", type=Path, metavar="FILE", help="its private key, PEM")
    parser.add_argument("--model", metavar="NAME_OR_DIR", help="the guard's weights (default: embedded)")
    parser.add_argument("--pipeline", metavar="NAME_OR_DIR", help="a diffusers pipeline to draw with (default: none)")
    parser.add_argument("--check", action="store_true", help="look at the settings and exit")
    parser.set_defaults(run=_serve)


def _serve(arguments: argparse.Namespace) -> None:
    settings = settings_of(arguments, **{name: getattr(arguments, name) for name in _OPTIONS})
    if arguments.check:
        settings.database_location()
        print(f"the settings can be used: https://{settings.host}:{settings.port}, data in {settings.data_dir}")
        return
    with service_packages():
        from latentguard.service.server import serve

    serve(settings)
