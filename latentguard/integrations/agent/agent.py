"""The agent: PrivacyAsst's four stages over the tools."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from latentguard.errors import AgentError, ToolError
from latentguard.integrations.agent.execution import Executor, Value
from latentguard.integrations.agent.given import Kind, Request, read_request
from latentguard.integrations.agent.plain import PlainTools
from latentguard.integrations.agent.plan import PlannedTask, Planner
from latentguard.integrations.agent.registry import Situation, choose
from latentguard.integrations.agent.report import Report, State, Step
from latentguard.integrations.tools.base import BlockedError, Screening, Tools
from privacy.keys import PublicKey


class Agent:
    """Plans the tasks of a request, chooses a tool for each, carries them out and reports.

    The plan is made once, before anything is done, and what tools give never reaches the planner: nothing that comes
    out of a tool, or stands in a file or its name, can add a task.

    Args:
        tools: what screens, draws and classifies, here or on a service.
        planner: makes the plan; `RulePlanner` needs no language model.
        output: the folder that results go to, as new files.
        public_keys: whom images are sealed to. With one, privacy-preserving tools are chosen wherever there are any.
        plain: tools without privacy; None if the user doesn't allow them.
        steps: denoising steps; the image model's own number if left out.

    Raises:
        AgentError: `output` is no folder.
    """

    def __init__(
        self,
        tools: Tools,
        planner: Planner,
        *,
        output: Path,
        public_keys: Sequence[PublicKey] = (),
        plain: PlainTools | None = None,
        steps: int | None = None,
    ) -> None:
        if not output.is_dir():
            raise AgentError(f"{output}: is no folder")
        self._tools, self._planner, self._output = tools, planner, output
        self._public_keys, self._plain, self._steps = tuple(public_keys), plain, steps

    async def run(self, request: str, files: Sequence[Path] = ()) -> Report:
        """Does what is asked, as far as it can be done; what a tool refuses or can't do stands in the report.

        Raises:
            AgentError: the request or a file can't be used, or there is no plan for it.
        """
        given = read_request(request, files)
        plan, planner = await self._planner.plan(given)
        executor = self._executor(given)
        values: dict[int, Value] = {}
        steps = []
        for task in plan.tasks:
            step, value = await self._step(task, given, values, executor)
            steps.append(step)
            if value is not None:
                values[task.id] = value
        return Report(planner, tuple(steps))

    def _executor(self, given: Request) -> Executor:
        keys = given.of_kind(Kind.EVALUATION_KEYS)
        return Executor(
            self._tools, self._output, self._public_keys, keys[0] if keys else None, self._plain, self._steps
        )

    async def _step(
        self, task: PlannedTask, given: Request, values: Mapping[int, Value], executor: Executor
    ) -> tuple[Step, Value | None]:
        """What became of a task, and what it gave if it was carried out."""
        step = Step(task.id, task.task, State.SKIPPED, None, (), (), "a task that it needs was not carried out")
        needed = {*task.after, *(() if task.output_of is None else (task.output_of,))}
        if not needed <= set(values):
            return step, None
        value = _input(task, given, values)
        choice = choose(task.task, self._situation(value.kind))
        step = replace(step, state=State.FAILED, tool=choice.entry, reasons=choice.reasons)
        if choice.entry is None:
            return replace(step, result="no tool can do it as things are"), None
        step = replace(step, place="this process" if choice.entry.calls is None else self._tools.place)
        try:
            outcome = await executor.carry_out(choice.entry, value)
        except BlockedError as blocked:
            return replace(step, state=State.BLOCKED, saw=("the prompt",), result=_refusal(blocked.verdict)), None
        except ToolError as error:
            return replace(step, saw=choice.entry.sees, result=f"{error} ({error.code})"), None
        done = replace(
            step, state=State.DONE, saw=outcome.saw, result=outcome.result, path=outcome.path, hint=outcome.hint
        )
        return done, outcome.value

    def _situation(self, kind: Kind) -> Situation:
        return Situation(
            given=kind,
            has_public_key=bool(self._public_keys),
            offered=self._tools.offered,
            plain_allowed=self._plain is not None,
            plain_offered=() if self._plain is None else self._plain.offered,
        )


def _input(task: PlannedTask, given: Request, values: Mapping[int, Value]) -> Value:
    if task.text is not None:
        return Value(Kind.TEXT, text=task.text)
    if task.output_of is not None:
        return values[task.output_of]
    file = next((file for file in given.files if file.handle == task.file), None)
    if file is None:
        raise AgentError(f"task {task.id}: its file is none that the user gave")
    return Value(file.kind, content=file.content)


def _refusal(verdict: Screening) -> str:
    return (
        f"the guard blocked the prompt, nothing was drawn: too near {verdict.concept!r} "
        f"(score {verdict.score:.2f}, threshold {verdict.threshold:.2f})"
    )
