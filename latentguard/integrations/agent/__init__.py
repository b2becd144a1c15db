"""An agent that keeps private what it can: plans tasks, chooses a tool for each, executes and reports.

::

    agent = Agent(tools, RulePlanner(), output=Path("results"), public_keys=[PublicKey.from_line("x25519:...")])
    print(await agent.run("can you generate a face image?"))

The four stages are those of PrivacyAsst (Zhang et al., IEEE TDSC 2024), with its two privacy-preserving tools.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from latentguard.integrations.agent.agent import Agent
    from latentguard.integrations.agent.endpoint import EndpointPlanner
    from latentguard.integrations.agent.plain import PlainTools
    from latentguard.integrations.agent.plan import Plan, PlannedTask, Planner
    from latentguard.integrations.agent.report import Report
    from latentguard.integrations.agent.rules import RulePlanner

_HOMES = {
    "Agent": "agent",
    "EndpointPlanner": "endpoint",
    "Plan": "plan",
    "PlannedTask": "plan",
    "Planner": "plan",
    "PlainTools": "plain",
    "Report": "report",
    "RulePlanner": "rules",
}

__all__ = [
    "Agent",
    "EndpointPlanner",
    "PlainTools",
    "Plan",
    "PlannedTask",
    "Planner",
    "Report",
    "RulePlanner",
]


def __getattr__(name: str) -> Any:
    """Imports a name at its first use, so that the command line needn't load what a command doesn't use."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    return found
