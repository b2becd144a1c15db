"""The command `agent`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from latentguard.errors import AgentError, MissingDependencyError
from latentguard.integrations.tools.options import add_tool_options, check_tool_options, local_tools, remote_tools

if TYPE_CHECKING:
    from latentguard.integrations.agent.plain import PlainTools
    from latentguard.integrations.agent.plan import Planner
    from latentguard.integrations.agent.report import Report
    from latentguard.integrations.tools.base import Tools


def add_agent(parser: argparse.ArgumentParser) -> None:
    """The options of ``agent``."""
    parser.add_argument("request", help='what to do: "can you generate a face image?"')
    parser.add_argument(
        "--public-key",
        action="append",
        default=[],
        metavar="LINE",
        help="whom images are sealed to, as `python -m privacy keygen` prints it; may be repeated",
    )
    parser.add_argument(
        "--file",
        type=Path,
        action="append",
        default=[],
        help="an encrypted image, its evaluation keys, or a picture; may be repeated",
    )
    parser.add_argument("--output", type=Path, default=Path("."), metavar="DIR", help="for results (default: here)")
    parser.add_argument("--steps", type=int, metavar="N", help="denoising steps (default: the model's own number)")
    parser.add_argument(
        "--allow-plain", action="store_true", help="let tools of this process see what no private tool can do without"
    )
    add_tool_options(parser)
    planner = parser.add_argument_group("a language model as planner (default: rules, without any)")
    planner.add_argument(
        "--endpoint",
        metavar="URL",
        help="speaks the OpenAI chat protocol, up to /v1; its key stands in the environment's PRIVACY_ENDPOINT_API_KEY",
    )
    planner.add_argument("--model", metavar="NAME", help="the model that the endpoint is asked for")
    parser.set_defaults(run=_agent)


def _agent(arguments: argparse.Namespace) -> None:
    try:
        import anyio
        import httpx  # noqa: F401
        import pydantic  # noqa: F401
    except ImportError:
        raise MissingDependencyError("the agent needs more packages: pip install 'latentguard[agents]'") from None
    check_tool_options(arguments)
    if (arguments.endpoint is None) != (arguments.model is None):
        raise AgentError("--endpoint and --model go together")
    if arguments.steps is not None and not 1 <= arguments.steps <= 150:
        raise AgentError("--steps: expected 1 to 150")
    if arguments.allow_plain and arguments.url is not None:
        raise AgentError("--allow-plain is for tools of this process; a service gives nothing in plain")
    report = anyio.run(_run, arguments)
    print(report)
    if not report.ok:
        raise SystemExit(1)


async def _run(arguments: argparse.Namespace) -> Report:
    from latentguard.integrations.agent.agent import Agent
    from latentguard.integrations.agent.given import read_request
    from privacy.keys import PublicKey

    # Whatever can be wrong is said before the seconds that models take to load.
    keys = [PublicKey.from_line(line) for line in arguments.public_key]
    read_request(arguments.request, arguments.file)
    planner = _planner(arguments)
    tools, plain = _tools(arguments)
    try:
        agent = Agent(tools, planner, output=arguments.output, public_keys=keys, plain=plain, steps=arguments.steps)
        return await agent.run(arguments.request, arguments.file)
    finally:
        await tools.aclose()


def _planner(arguments: argparse.Namespace) -> Planner:
    if arguments.endpoint is None:
        from latentguard.integrations.agent.rules import RulePlanner

        return RulePlanner()
    from latentguard.integrations.agent.endpoint import EndpointPlanner
    from privacy.memorization.endpoint import Endpoint

    return EndpointPlanner(Endpoint.from_environment(arguments.endpoint, arguments.model))


def _tools(arguments: argparse.Namespace) -> tuple[Tools, PlainTools | None]:
    if arguments.url is not None:
        return remote_tools(arguments), None
    tools = local_tools(arguments)
    if not arguments.allow_plain:
        return tools, None
    from latentguard.integrations.agent.plain import PlainTools

    return tools, PlainTools(pipeline=tools.pipeline, network=(arguments.classifier or ["mnist"])[0])
