"""Setting the threshold on harmless prompts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from typing import Any, overload

from fastapi import Request

from latentguard.calibration import Calibration, calibrate
from latentguard.errors import ConceptError, DataError, EncoderError, PolicyError, PromptError
from latentguard.guard import scorable
from latentguard.service.access import ApiKey, Scope
from latentguard.service.errors import (
    AuditUnavailableError,
    BusyError,
    ClosingError,
    DeadlineError,
    PreconditionFailedError,
    TooManyPromptsError,
)
from latentguard.service.jobs import Progress, Result
from latentguard.service.routes.jobs import accepted
from latentguard.service.routes.keyed import KeyOf, RequestId, ServicesOf, json_errors, keyed_router
from latentguard.service.schemas import CalibrateRequest, CalibrateResponse, JobBody
from latentguard.service.services import Services

router = keyed_router(Scope.admin, tag="policy")


@router.post(
    "/v1/calibrate",
    response_model=CalibrateResponse,
    responses={
        **json_errors(
            PromptError,
            ConceptError,
            DataError,
            PolicyError,
            EncoderError,
            TooManyPromptsError,
            BusyError,
            ClosingError,
            AuditUnavailableError,
            PreconditionFailedError,
        ),
        202: {"model": JobBody, "description": "Handed in as a job"},
    },
)
async def set_on_harmless_prompts(
    body: CalibrateRequest, request: Request, services: ServicesOf, key: KeyOf, request_id: RequestId
) -> Any:
    """The threshold for a wanted rate of false alarms, with its guarantee; put in force if asked for."""
    services.check_size(body.prompts, len(body.prompts))
    prompts = await asyncio.to_thread(_distinct, body.prompts)
    if body.wait and len(prompts) <= services.settings.max_prompts:
        return await _calibrated(services, key, prompts, body, Progress(), request_id)

    async def work(progress: Progress) -> Result:
        answer = await _calibrated(services, key, prompts, body, progress, request_id)
        return Result(answer.model_dump_json().encode(), "application/json")

    return accepted(await services.jobs.submit(key.id, "calibrate", len(prompts), work))


async def _calibrated(
    services: Services,
    key: ApiKey,
    prompts: Sequence[str],
    body: CalibrateRequest,
    progress: Progress,
    request_id: str,
) -> CalibrateResponse:
    now = services.policies.now
    stopped = False

    def check() -> None:
        if stopped:
            raise DeadlineError("nobody waits for the calibration any more")

    try:
        watched = _Watched(prompts, progress, check)
        found: Calibration = await asyncio.to_thread(calibrate, now.guard, watched, body.rate)
    finally:
        stopped = True
    policy = now.fingerprint
    if body.apply:
        after = await asyncio.to_thread(
            services.change,
            key,
            "policy.calibrate",
            threshold=found.threshold,
            expected=now.fingerprint,
            details={"request": request_id, "rate": found.rate, "prompts": found.prompts},
        )
        policy = after.fingerprint
    return CalibrateResponse(
        threshold=found.threshold,
        rate=found.rate,
        prompts=found.prompts,
        blocked=found.blocked,
        bound=found.bound,
        guarantee=found.guarantee(),
        applied=body.apply,
        policy=policy,
    )


def _distinct(prompts: Sequence[str]) -> list[str]:
    """Each prompt once, as the guard reads it: repetitions are not independent. Raises PromptError."""
    return list({scorable(prompt, place): prompt for place, prompt in enumerate(prompts)}.values())


class _Watched(Sequence[str]):
    """Prompts that tell how many of them were read, and that `check` may keep from being read on."""

    def __init__(self, prompts: Sequence[str], progress: Progress, check: Callable[[], None]) -> None:
        self._prompts, self._progress, self._check = prompts, progress, check

    def __len__(self) -> int:
        return len(self._prompts)

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[str]: ...
    def __getitem__(self, place: int | slice) -> str | Sequence[str]:
        return self._prompts[place]

    def __iter__(self) -> Iterator[str]:
        for place, prompt in enumerate(self._prompts):
            self._check()
            self._progress.done = place
            yield prompt
