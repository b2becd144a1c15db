"""Plans: the tasks of a request and what each takes, checked before anything is done."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from latentguard.errors import AgentError
from latentguard.integrations.agent.given import Kind, Request
from latentguard.integrations.tools.base import MOST_PROMPT_CHARS

TaskKind = Literal["prompt-screening", "text-to-image", "image-classification"]
MOST_TASKS = 8

# What a task may take from a task before it.
_TAKES: Mapping[TaskKind, TaskKind] = {"text-to-image": "prompt-screening", "image-classification": "text-to-image"}


class PlannedTask(BaseModel):
    """One task. Its input is exactly one of `text`, `file` and `output_of`."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)

    id: int = Field(ge=0, lt=MOST_TASKS)
    task: TaskKind
    text: str | None = Field(max_length=MOST_PROMPT_CHARS, description="a passage of the request, word for word")
    file: str | None = Field(max_length=20, description="the handle of a file, such as 'file-1'")
    output_of: int | None = Field(description="the id of an earlier task whose output this one takes")
    after: list[int] = Field(max_length=MOST_TASKS, description="ids of earlier tasks that have to succeed first")


class Plan(BaseModel):
    """The tasks of a request, in an order in which each follows what it needs."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)

    tasks: list[PlannedTask] = Field(min_length=1, max_length=MOST_TASKS)


class Planned(NamedTuple):
    """A plan as `checked_plan` gives it, and a line for the user on who made it and what they saw."""

    plan: Plan
    by: str


class Planner(Protocol):
    """Makes plans."""

    async def plan(self, request: Request) -> Planned:
        """The plan for a request. Raises AgentError if there is none."""
        ...


def checked_plan(content: object, request: Request, source: str) -> Plan:
    """The plan in what a planner said, which is not trusted.

    It may name only tasks that there are, files that the user gave, and text that stands in `source`, which is what the
    planner was shown of the request: it may cut a request into tasks, and can't add anything to it.

    Raises:
        AgentError: it isn't such a plan; the message names what is wrong, and quotes nothing.
    """
    try:
        plan = Plan.model_validate(content)
    except ValidationError as error:
        wrong = [
            f"{'.'.join(str(part) for part in each['loc'])[:60] or 'plan'}: {each['msg'][:120]}"
            for each in error.errors(include_input=False, include_url=False, include_context=False)[:5]
        ]
        raise AgentError(f"not a plan: {'; '.join(wrong)}") from None
    earlier: dict[int, TaskKind] = {}
    for task in plan.tasks:
        _check(task, earlier, request, _folded(source))
        earlier[task.id] = task.task
    return plan


def _check(task: PlannedTask, earlier: Mapping[int, TaskKind], request: Request, source: str) -> None:
    where = f"task {task.id} ({task.task})"
    if task.id in earlier:
        raise AgentError(f"{where}: there is another task of that id")
    if sum(given is not None for given in (task.text, task.file, task.output_of)) != 1:
        raise AgentError(f"{where}: needs exactly one of text, file and output_of")
    if not set(task.after) <= set(earlier):
        raise AgentError(f"{where}: after: names a task that doesn't come before it")
    if task.text is not None:
        if task.task == "image-classification":
            raise AgentError(f"{where}: takes a file, not a text")
        if not _folded(task.text) or _folded(task.text) not in source:
            raise AgentError(f"{where}: text: isn't a passage of the request")
    if task.file is not None:
        if task.task != "image-classification":
            raise AgentError(f"{where}: takes a text, not a file")
        handles = [file.handle for file in request.of_kind(Kind.ENCRYPTED_IMAGE, Kind.PICTURE)]
        if task.file not in handles:
            raise AgentError(f"{where}: file: is none that the user gave for it ({', '.join(handles) or 'none'})")
    if task.output_of is not None and earlier.get(task.output_of) != _TAKES.get(task.task, "nothing"):
        raise AgentError(f"{where}: output_of: names no earlier task whose output it can take")


def plan_schema() -> dict[str, Any]:
    """The JSON schema of a plan, in the part of it that language models' endpoints take."""
    nullable = [{"type": "string"}, {"type": "null"}]
    task = {
        "type": "object",
        "properties": {
            "id": {"type": "integer"},
            "task": {"type": "string", "enum": ["prompt-screening", "text-to-image", "image-classification"]},
            "text": {"anyOf": nullable},
            "file": {"anyOf": nullable},
            "output_of": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
            "after": {"type": "array", "items": {"type": "integer"}},
        },
        "required": ["id", "task", "text", "file", "output_of", "after"],
        "additionalProperties": False,
    }
    return {
        "type": "object",
        "properties": {"tasks": {"type": "array", "items": task}},
        "required": ["tasks"],
        "additionalProperties": False,
    }


def _folded(text: str) -> str:
    return " ".join(text.split()).casefold()
