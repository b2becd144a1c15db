"""What the agent did, for the user: by which tool, what each saw, and where the result lies."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from latentguard.integrations.agent.plan import TaskKind
from latentguard.integrations.agent.registry import Entry


class State(str, Enum):
    """How a task ended."""

    DONE = "done"
    BLOCKED = "blocked"
    """The guard blocked its prompt."""
    FAILED = "failed"
    SKIPPED = "skipped"
    """Another task, which it needs, did not succeed."""


@dataclass(frozen=True)
class Step:
    """One task and what became of it.

    `saw` is what the tool that was called saw, and `place` where it works; empty if none was called. `path` is where
    the result lies, if it is a file, and `hint` what the user does with it.
    """

    id: int
    task: TaskKind
    state: State
    tool: Entry | None
    reasons: tuple[str, ...]
    saw: tuple[str, ...]
    result: str
    place: str = ""
    path: Path | None = None
    hint: str | None = None

    def __str__(self) -> str:
        lines = [f"{self.id + 1}. {self.task}: {self.state.value}", *(f"   {reason}" for reason in self.reasons)]
        if self.saw and self.tool is not None:
            lines.append(f"   {self.tool.name}, in {self.place}, saw: {', '.join(self.saw)}")
        lines.append(f"   result: {self.result}")
        if self.hint is not None:
            lines.append(f"   next: {self.hint}")
        return "\n".join(lines)


@dataclass(frozen=True)
class Report:
    """The steps of a request, and what the planner saw. Holds no prompt, no key and no content."""

    planner: str
    steps: tuple[Step, ...]

    @property
    def ok(self) -> bool:
        """Whether every task was carried out."""
        return all(step.state is State.DONE for step in self.steps)

    def __str__(self) -> str:
        return "\n".join([f"planned by {self.planner}", *map(str, self.steps)])
