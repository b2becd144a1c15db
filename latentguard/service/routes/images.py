"""Private images, and images that are classified without being seen."""

from __future__ import annotations

import base64
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from fastapi import Request, Response

from latentguard.errors import EncoderError, UnscreenedError
from latentguard.guard import scorable
from latentguard.service.access import ApiKey, Scope
from latentguard.service.classifiers import SESSION_SECONDS, Classifiers
from latentguard.service.errors import (
    AuditUnavailableError,
    BusyError,
    MediaTypeError,
    NoClassifierError,
    NoPipelineError,
    PromptsBlockedError,
    RequestError,
    TooManyPromptsError,
)
from latentguard.service.generation import Drawing, Generator
from latentguard.service.jobs import Progress, Result
from latentguard.service.policies import Judged
from latentguard.service.routes.jobs import accepted
from latentguard.service.routes.keyed import (
    OF_SCREENING,
    KeyOf,
    RequestId,
    ServicesOf,
    body_errors,
    json_errors,
    keyed_router,
    media_type,
)
from latentguard.service.schemas import GenerateRequest, GenerateResponse, JobBody, SessionBody
from latentguard.service.services import Record, Services
from latentguard.verdict import Verdict
from privacy.errors import (
    CapacityError,
    InferenceError,
    KeyFileError,
    PipelineError,
    PromptRefusedError,
    SessionExpiredError,
    WorkerError,
)
from privacy.keys import PublicKey
from privacy.pipeline import PrivateImage

_STREAM = "application/octet-stream"
_BINARY: dict[str, Any] = {_STREAM: {"schema": {"type": "string", "format": "binary"}}}

_UPLOAD_SECONDS = 3600.0

drawing = keyed_router(Scope.generate, tag="images", seconds=lambda settings: settings.generate_timeout_s)
encrypted = keyed_router(Scope.generate, tag="images", seconds=lambda _: _UPLOAD_SECONDS, streams=True)


class CallGuard:
    """The guard of one drawing: what it says is in the audit log before the pipeline hears it."""

    def __init__(self, services: Services, key: ApiKey, request_id: str) -> None:
        self._services, self._key, self._request_id = services, key, request_id
        self._stage = "written"
        self.judged: list[Judged] = []

    def check_batch(self, prompts: Sequence[str], /) -> list[Verdict]:
        """The verdicts on what the user wrote, and the next time on what is to be drawn instead."""
        judged = self._services.policies.check(prompts)
        details = {"request": self._request_id, "stage": self._stage}
        self._services.write_down(
            [
                Record(self._key.id, "generate", prompt, each, details)
                for prompt, each in zip(prompts, judged, strict=True)
            ]
        )
        self._stage = "drawn"
        self.judged += judged
        return [each.verdict for each in judged]


@drawing.post(
    "/v1/generate",
    response_model=GenerateResponse,
    responses={
        **json_errors(
            *OF_SCREENING,
            BusyError,
            TooManyPromptsError,
            AuditUnavailableError,
            EncoderError,
            UnscreenedError,
            NoPipelineError,
            PromptsBlockedError,
            KeyFileError,
            PipelineError,
        ),
        200: {"description": "The sealed image, or several in JSON", "content": _BINARY, "model": GenerateResponse},
        202: {"model": JobBody, "description": "Handed in as a job"},
    },
)
async def generate(
    body: GenerateRequest, request: Request, services: ServicesOf, key: KeyOf, request_id: RequestId
) -> Any:
    """Draws a prompt and seals the image to its recipients, so that nobody else sees it.

    What the user wrote and what is drawn, once personal data is out of it, are both screened.
    """
    generator = services.pipeline
    if generator is None:
        raise NoPipelineError("the service was started without an image pipeline")
    if body.format == "file" and body.images > 1 and body.wait:
        raise RequestError('several images come in JSON: give "format": "json"')
    services.check_size([body.prompt], 1)
    scorable(body.prompt, 0)
    wanted = _drawing(body)
    services.limiter.take(key.id, body.images)
    guard = CallGuard(services, key, request_id)
    if body.wait:
        images = await _drawn(services, generator, wanted, guard, request.state.deadline, Progress())
        if body.format == "file":
            return Response(images[0].sealed, media_type=_STREAM)
        return _as_json(images, request_id)

    async def work(progress: Progress) -> Result:
        images = await _drawn(
            services, generator, wanted, guard, time.monotonic() + services.settings.generate_timeout_s, progress
        )
        return Result(_as_json(images, request_id).model_dump_json().encode(), "application/json")

    return accepted(await services.jobs.submit(key.id, "generate", body.steps or 1, work))


@encrypted.put(
    "/v1/classify-encrypted/keys",
    response_model=SessionBody,
    openapi_extra={"requestBody": {"required": True, "content": _BINARY}},
    responses=body_errors(NoClassifierError, BusyError, CapacityError, InferenceError, WorkerError),
)
async def put_keys(request: Request, services: ServicesOf) -> Any:
    """Takes a client's evaluation keys, which hold no secret and are needed before its first query."""
    classifiers = _classifiers(services)
    async with classifiers.room():
        fingerprint = await classifiers.register(await _ciphertext(request))
    return SessionBody(fingerprint=fingerprint, seconds=SESSION_SECONDS)


@encrypted.post(
    "/v1/classify-encrypted",
    response_class=Response,
    openapi_extra={"requestBody": {"required": True, "content": _BINARY}},
    responses={
        **body_errors(NoClassifierError, BusyError, SessionExpiredError, InferenceError, WorkerError),
        200: {"description": "The encrypted answer", "content": _BINARY},
    },
)
async def classify(request: Request, services: ServicesOf) -> Response:
    """Classifies images that stay encrypted; only the client can read the answer."""
    classifiers = _classifiers(services)
    async with classifiers.room():
        return Response(await classifiers.classify(await _ciphertext(request)), media_type=_STREAM)


def _drawing(body: GenerateRequest) -> Drawing:
    """What is to be drawn; KeyFileError if a recipient's key isn't one."""
    return Drawing(
        prompt=body.prompt,
        recipients=tuple(PublicKey.from_line(line) for line in body.recipients),
        images=body.images,
        steps=body.steps,
        guidance_scale=body.guidance_scale,
        width=body.width,
        height=body.height,
        seed=body.seed,
    )


async def _drawn(
    services: Services, generator: Generator, wanted: Drawing, guard: CallGuard, deadline: float, progress: Progress
) -> list[PrivateImage]:
    """The images; PromptsBlockedError if the guard, or one of the pipeline's own, blocks."""

    def steps(done: int) -> None:
        progress.done = done

    try:
        images = await generator.draw(wanted, guard, deadline=deadline, progress=steps)
    except PromptRefusedError:
        blocking = [each for each in guard.judged if each.verdict.blocked]
        raise PromptsBlockedError([each.verdict for each in blocking], blocking[-1].policy) from None
    if any(image.blocked for image in images):  # by a guard on the pipeline itself, which draws something else then
        own = [image.verdicts.pipeline for image in images]
        raise PromptsBlockedError([each for each in own if isinstance(each, Verdict)], guard.judged[-1].policy)
    services.metrics.images.inc(len(images))
    return images


def _as_json(images: Sequence[PrivateImage], request_id: str) -> GenerateResponse:
    found = sum((Counter(image.pii) for image in images[:1]), Counter[str]())
    return GenerateResponse(
        request_id=request_id,
        images=[base64.b64encode(image.sealed).decode("ascii") for image in images if image.sealed is not None],
        personal_data=dict(found),
    )


def _classifiers(services: Services) -> Classifiers:
    if services.classifiers is None:
        raise NoClassifierError("the service was started without encrypted classifiers")
    return services.classifiers


async def _ciphertext(request: Request) -> bytes:
    if media_type(request) != _STREAM:
        raise MediaTypeError(f"{_STREAM} is what this takes")
    return await request.body()
