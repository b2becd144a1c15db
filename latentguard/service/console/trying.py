"""Trying a prompt: the verdict, what each word adds to it, and the nearest concepts."""

from __future__ import annotations

from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from latentguard.errors import PromptError
from latentguard.service.access import Scope
from latentguard.service.console.charts import bars, words
from latentguard.service.console.web import PageRoute, Visit
from latentguard.service.errors import BusyError, DeadlineError, TooManyPromptsError
from latentguard.service.limits import RateLimitedError
from latentguard.verdict import Verdict

ACTION = "console.try"
_REFUSED = (PromptError, TooManyPromptsError, RateLimitedError, BusyError, DeadlineError)


def _show(visit: Visit) -> Response:
    return _page(visit, "")


async def _try(visit: Visit) -> Response:
    visit.session.key.require(Scope.screen)
    prompt = str(visit.form.get("prompt", ""))
    try:
        [judged] = await visit.services.screen(visit.session.key, [prompt], action=ACTION)
    except _REFUSED as error:
        message = f"{error}."
        return await run_in_threadpool(_page, visit, prompt, problem=message[0].upper() + message[1:])
    return await run_in_threadpool(_judged_page, visit, prompt, judged.verdict)


def _judged_page(visit: Visit, prompt: str, verdict: Verdict) -> Response:
    explanation = verdict.explain()
    guard = visit.services.guard
    thresholds = dict(zip(guard.concepts.names, guard.policy.thresholds(guard.concepts).tolist(), strict=True))
    found = words(explanation)
    return _page(
        visit,
        prompt,
        verdict=verdict,
        words=found,
        partial=any(word.share is None for word in found),
        rest=explanation.whole_prompt + explanation.bias,
        bars=bars(verdict, thresholds),
    )


def _page(visit: Visit, prompt: str, **result: Any) -> Response:
    values: dict[str, Any] = {"problem": None, "verdict": None} | result
    return visit.page("try.html", "try", prompt=prompt, max_chars=visit.services.settings.max_prompt_chars, **values)


ROUTES = (
    PageRoute("GET", "/try", _show, admin=False),
    PageRoute("POST", "/try", _try, admin=False),
)
