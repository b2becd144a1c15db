"""The command `mcp`."""

from __future__ import annotations

import argparse
from pathlib import Path

from latentguard.errors import AgentError, MissingDependencyError
from latentguard.integrations.tools.options import add_tool_options, check_tool_options, local_tools, remote_tools
from latentguard.service.commands import add_settings_options, service_packages, settings_of


def add_mcp(parser: argparse.ArgumentParser) -> None:
    """The options of ``mcp``."""
    parser.add_argument(
        "--transport",
        choices=("stdio", "http"),
        default="stdio",
        help="stdio for the program that starts it, or http on loopback for whoever has an API key (default: stdio)",
    )
    add_tool_options(parser)
    files = parser.add_argument_group("files, with stdio")
    files.add_argument("--input-dir", type=Path, metavar="DIR", help="tools may read the files of this folder")
    files.add_argument(
        "--output-dir", type=Path, metavar="DIR", help="results become files of this folder (default: embedded)"
    )
    http = parser.add_argument_group("http")
    http.add_argument("--port", type=int, metavar="N", help="on 127.0.0.1; 0 takes a free one (default: 8444)")
    add_settings_options(parser)
    parser.set_defaults(run=_mcp)


def _mcp(arguments: argparse.Namespace) -> None:
    try:
        import httpx  # noqa: F401
        import mcp  # noqa: F401
    except ImportError:
        raise MissingDependencyError("agents' tools need the MCP SDK: pip install 'latentguard[agents]'") from None
    check_tool_options(arguments)
    if arguments.transport == "http":
        _http(arguments)
    else:
        _stdio(arguments)


def _stdio(arguments: argparse.Namespace) -> None:
    if arguments.config or arguments.data_dir or arguments.port is not None:
        raise AgentError("--config, --data-dir and --port go with --transport http")

    from anyio import run

    from latentguard.integrations.mcp.files import Folder
    from latentguard.integrations.mcp.server import Access
    from latentguard.integrations.mcp.stdio import serve_stdio

    inputs = None if arguments.input_dir is None else Folder(arguments.input_dir)
    outputs = None if arguments.output_dir is None else Folder(arguments.output_dir)
    tools = local_tools(arguments) if arguments.url is None else remote_tools(arguments)
    run(serve_stdio, Access(tools, inputs, outputs))


def _http(arguments: argparse.Namespace) -> None:
    if arguments.url is not None:
        raise AgentError("--transport http offers tools of this process; the service at --url has /mcp itself")
    if arguments.input_dir or arguments.output_dir:
        raise AgentError("--input-dir and --output-dir go with --transport stdio; over http there are no files")
    settings = settings_of(
        arguments, model=arguments.guard, pipeline=arguments.pipeline, classifiers=arguments.classifier
    )
    with service_packages():
        from latentguard.integrations.mcp.standalone import serve_http

    serve_http(settings, port=8444 if arguments.port is None else arguments.port)
