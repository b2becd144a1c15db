"""Screening prompts."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from fastapi import Request, Response

from latentguard.errors import EncoderError
from latentguard.service.access import ApiKey, Scope
from latentguard.service.errors import (
    AuditUnavailableError,
    BusyError,
    RequestError,
    TooManyPromptsError,
)
from latentguard.service.jobs import Progress, Result
from latentguard.service.limits import RateLimitedError
from latentguard.service.policies import Judged
from latentguard.service.routes.jobs import accepted
from latentguard.service.routes.keyed import OF_SCREENING, KeyOf, RequestId, ServicesOf, json_errors, keyed_router
from latentguard.service.schemas import JobBody, ScreenRequest, ScreenResponse, VerdictBody
from latentguard.service.services import Services

_T = TypeVar("_T")

_MOST_EXPLAINED = 16

router = keyed_router(Scope.screen, tag="screening")


@router.post(
    "/v1/screen",
    response_model=ScreenResponse,
    responses={
        **json_errors(*OF_SCREENING, BusyError, TooManyPromptsError, AuditUnavailableError, EncoderError),
        202: {"model": JobBody, "description": "Handed in as a job"},
    },
)
async def screen(body: ScreenRequest, request: Request, services: ServicesOf, key: KeyOf, request_id: RequestId) -> Any:
    """Tells whether prompts may be drawn, and which concept decided."""
    prompts = _prompts(body)
    if body.explain and len(prompts) > _MOST_EXPLAINED:
        raise RequestError(f"explain: {_MOST_EXPLAINED} prompts at most")
    if not body.wait or len(prompts) > services.settings.max_prompts:
        return await _as_job(services, key, prompts, body, request_id)
    judged = await services.screen(key, prompts, deadline=request.state.deadline, details={"request": request_id})
    return await _answer(judged, body, request_id)


def _prompts(body: ScreenRequest) -> Sequence[str]:
    if (body.prompt is None) == (body.prompts is None):
        raise RequestError("give prompt or prompts, and not both")
    return [body.prompt] if body.prompt is not None else body.prompts or []


async def _answer(judged: Sequence[Judged], body: ScreenRequest, request_id: str) -> ScreenResponse:
    verdicts = [each.verdict for each in judged]
    explanations: Sequence[Any] = [None] * len(verdicts)
    if body.explain:
        explanations = await asyncio.to_thread(lambda: [verdict.explain() for verdict in verdicts])
    results = [VerdictBody.of(*each) for each in zip(verdicts, [body.top_k] * len(verdicts), explanations, strict=True)]
    return ScreenResponse(request_id=request_id, policy=judged[-1].policy, results=results)


async def _as_job(
    services: Services, key: ApiKey, prompts: Sequence[str], body: ScreenRequest, request_id: str
) -> Response:
    services.check_size(prompts, len(prompts))
    at_once = min(services.settings.max_batch, services.settings.max_prompts)

    async def work(progress: Progress) -> Result:
        judged: list[Judged] = []
        for start in range(0, len(prompts), at_once):
            part = prompts[start : start + at_once]
            judged += await patiently(partial(services.screen, key, part, details={"request": request_id}))
            progress.done = len(judged)
        answer = await _answer(judged, body, request_id)
        return Result(answer.model_dump_json().encode(), "application/json")

    return accepted(await services.jobs.submit(key.id, "screen", len(prompts), work))


async def patiently(work: Callable[[], Awaitable[_T]]) -> _T:
    """What `work` gives, once neither the key's rate limit nor a full queue is in its way."""
    while True:
        try:
            return await work()
        except (RateLimitedError, BusyError) as error:
            await asyncio.sleep(error.retry_after)
