"""The planner that needs no language model: it knows a few verbs, and gives the same plan for the same request."""

from __future__ import annotations

import re

from latentguard.errors import AgentError
from latentguard.integrations.agent.given import GivenFile, Kind, Request
from latentguard.integrations.agent.plan import MOST_TASKS, Planned, PlannedTask, TaskKind, checked_plan

_VERBS: dict[TaskKind, str] = {
    "text-to-image": "generate|create|draw|paint|make|render|sketch|produce",
    "image-classification": "classify|recogni[sz]e|label|identify|categori[sz]e",
    "prompt-screening": "screen|check|moderate",
}
_ANY_VERB = "|".join(_VERBS.values())
_LEAD = (
    r"(?:(?:and|then|also|now|please|kindly|afterwards)\b[\s,]*|(?:can|could|would|will) you\b[\s,]*"
    r"|i(?:'d| would) like you to\b\s*|i want you to\b\s*)*"
)
# Between two tasks: a mark or a word that joins, and then a verb. "a cat and a dog" stays one.
_BETWEEN = re.compile(
    rf"(?:\s*[,;.?!]\s*|\s+)(?:(?:and|then|also|afterwards)\b[\s,]*)+(?={_LEAD}(?:{_ANY_VERB})\b)"
    rf"|\s*[;.?!]\s+(?={_LEAD}(?:{_ANY_VERB})\b)",
    re.IGNORECASE,
)
_PICTURE = r"(?:image|picture|photo|photograph|drawing|painting|portrait)"
_OF = re.compile(rf"^(?:an?|the|some)?\s*{_PICTURE}s?\s+(?:of|showing|with)\s+", re.IGNORECASE)
_NAMED_PICTURE = re.compile(rf"\s+{_PICTURE}$", re.IGNORECASE)
_PROMPT = re.compile(r"^(?:(?:whether|if)\s+)?(?:the\s+)?(?:prompt|text)?\s*:?\s*", re.IGNORECASE)
_CONDITION = re.compile(r"[\s,]*\b(?:if|when)\s+(?:it|that|this)(?:'s| is)\s+\w+$", re.IGNORECASE)
_BACK = re.compile(rf"^(?:it|that|this|the result|(?:the|that|this) (?:{_PICTURE}|prompt))$", re.IGNORECASE)
_HANDLE = re.compile(r"\[(file-\d+)\]")
_PATH = re.compile(r"[/\\]|\w\.\w{2,5}\b")
_KINDS = "draw ..., classify FILE, check the prompt ..."


class RulePlanner:
    """Plans requests such as "draw a red fox in the snow and classify the encryption image FILE"."""

    async def plan(self, request: Request) -> Planned:
        # Without runs of blanks, in which these patterns would look for a word over and over.
        clauses = [clause for clause in _BETWEEN.split(" ".join(request.text.split())) if clause.strip()]
        if len(clauses) > MOST_TASKS:
            raise AgentError(f"the request has {len(clauses)} tasks; the limit is {MOST_TASKS}")
        tasks: list[PlannedTask] = []
        for clause in clauses:
            tasks.append(_task(clause, tasks, request))
        plan = checked_plan({"tasks": [task.model_dump() for task in tasks]}, request, request.text)
        return Planned(plan, "the rules in this process; nobody else saw the request")


def _task(clause: str, before: list[PlannedTask], request: Request) -> PlannedTask:
    match = re.match(rf"{_LEAD}(?P<verb>{_ANY_VERB})\b\s*(?:me\s+)?(?P<rest>.*)$", clause.strip(), re.I | re.S)
    if match is None:
        raise AgentError(f"part {len(before) + 1} of the request asks for nothing that is known here: {_KINDS}")
    kind = next(kind for kind, verbs in _VERBS.items() if re.fullmatch(verbs, match["verb"], re.IGNORECASE))
    rest = match["rest"].strip().rstrip("?!.,;").strip()
    if kind == "image-classification":
        return _classification(rest, before, request)
    if kind == "text-to-image":
        rest = _CONDITION.sub("", rest)
    if _BACK.match(rest):
        return _planned(before, kind, output_of=_latest(before, "prompt-screening", kind))
    text = _drawable(rest) if kind == "text-to-image" else _PROMPT.sub("", rest)
    text = text.strip().strip("\"'“”‘’").strip()
    if not text:
        raise AgentError(f"part {len(before) + 1} of the request doesn't say what: {_KINDS}")
    return _planned(before, kind, text=text)


def _drawable(rest: str) -> str:
    """What is to be seen: "a picture of a fox" and "a fox image" are a fox."""
    return _NAMED_PICTURE.sub("", _OF.sub("", rest))


def _classification(rest: str, before: list[PlannedTask], request: Request) -> PlannedTask:
    files = request.of_kind(Kind.ENCRYPTED_IMAGE, Kind.PICTURE)
    named = _HANDLE.findall(rest)
    drawn = any(task.task == "text-to-image" for task in before)
    if not named and drawn and _BACK.match(rest):
        return _planned(before, "image-classification", output_of=_latest(before, "text-to-image", "classification"))
    if len(named) == 1:
        return _planned(before, "image-classification", file=named[0])
    if _PATH.search(rest):
        raise AgentError("the request names a file that was not given with --file")
    if named:
        raise AgentError("classify one file at a time: join the parts with 'and classify'")
    return _planned(before, "image-classification", file=_only(files).handle)


def _only(files: list[GivenFile]) -> GivenFile:
    if len(files) == 1:
        return files[0]
    if not files:
        raise AgentError("there is no file to classify: give it with --file, and the evaluation keys as well")
    raise AgentError("there are several files to classify: name the one that is meant in the request")


def _latest(before: list[PlannedTask], kind: TaskKind, what: str) -> int:
    found = [task.id for task in before if task.task == kind]
    if not found:
        raise AgentError(f"{what}: the request points back at something that no earlier part of it makes")
    return found[-1]


def _planned(
    before: list[PlannedTask],
    kind: TaskKind,
    *,
    text: str | None = None,
    file: str | None = None,
    output_of: int | None = None,
) -> PlannedTask:
    return PlannedTask(id=len(before), task=kind, text=text, file=file, output_of=output_of, after=[])
