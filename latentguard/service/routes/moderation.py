"""Moderation as OpenAI's API has it, so that its clients work unchanged."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from fastapi import Request

from latentguard.errors import EncoderError
from latentguard.guard import probability
from latentguard.service.access import Scope
from latentguard.service.errors import (
    AuditUnavailableError,
    BusyError,
    TooManyPromptsError,
    UnsupportedInputError,
)
from latentguard.service.policies import Judged
from latentguard.service.routes.keyed import OF_SCREENING, KeyOf, RequestId, ServicesOf, json_errors, keyed_router
from latentguard.service.schemas import (
    ImagePart,
    ModerationRequest,
    ModerationResponse,
    ModerationResult,
    TextPart,
)

MODEL = "latentguard"

# What OpenAI's clients look for. Categories that the guard doesn't tell apart are never flagged, and the result says
# that nothing was looked at for them.
OPENAI_CATEGORIES = (
    "harassment",
    "harassment/threatening",
    "hate",
    "hate/threatening",
    "illicit",
    "illicit/violent",
    "self-harm",
    "self-harm/instructions",
    "self-harm/intent",
    "sexual",
    "sexual/minors",
    "violence",
    "violence/graphic",
)
_ALSO_CALLED = {"illegal activity": "illicit"}
_UNCATEGORISED = "other"

router = keyed_router(Scope.screen, tag="screening")


@router.post(
    "/v1/moderations",
    response_model=ModerationResponse,
    responses=json_errors(
        *OF_SCREENING, BusyError, TooManyPromptsError, UnsupportedInputError, AuditUnavailableError, EncoderError
    ),
)
async def moderate(
    body: ModerationRequest, request: Request, services: ServicesOf, key: KeyOf, request_id: RequestId
) -> Any:
    """Screens texts, in the form of OpenAI's moderation endpoint.

    A list of texts gives a result for each; the parts of one input are screened together.
    """
    judged = await services.screen(
        key,
        _texts(body.input),
        action="moderate",
        deadline=request.state.deadline,
        details={"request": request_id},
    )
    results = [_result(each) for each in judged]
    return ModerationResponse(id=f"modr-{request_id}", model=MODEL, results=results)


def _texts(given: str | Sequence[str] | Sequence[TextPart | ImagePart]) -> list[str]:
    if isinstance(given, str):
        return [given]
    texts = [part for part in given if isinstance(part, str)]
    if texts:
        return texts
    parts = []
    for place, part in enumerate(given):
        if not isinstance(part, TextPart):
            raise UnsupportedInputError(f"input {place + 1} is an image; only text can be moderated")
        parts.append(part.text)
    return ["\n".join(parts)]


def _result(judged: Judged) -> ModerationResult:
    """The verdict by category: the highest probability of its concepts, flagged where one of them blocks."""
    verdict, guard = judged.verdict, judged.in_force.guard
    entries = {entry.name: entry for entry in guard.concepts}
    thresholds = dict(zip(entries, guard.policy.thresholds(entries.values()).tolist(), strict=True))
    flagged: dict[str, bool] = {}
    scores: dict[str, float] = {}
    for name, score in verdict.scores(None):
        category = entries[name].category or _UNCATEGORISED
        if math.isinf(thresholds[name]):  # its category is switched off
            continue
        blocks = score >= thresholds[name]
        flagged[category] = flagged.get(category, False) or blocks
        scores[category] = max(scores.get(category, 0.0), _probability(judged, score, blocks))
    for ours, theirs in _ALSO_CALLED.items():
        if ours in flagged:
            flagged[theirs], scores[theirs] = flagged[ours], scores[ours]
    seen = set(flagged)
    for name in OPENAI_CATEGORIES:
        flagged.setdefault(name, False)
        scores.setdefault(name, 0.0)
    return ModerationResult(
        flagged=verdict.blocked,
        categories=flagged,
        category_scores=scores,
        category_applied_input_types={name: ["text"] if name in seen else [] for name in flagged},
    )


def _probability(judged: Judged, score: float, blocks: bool) -> float:
    """The calibrated probability of a score; without calibration, whether it blocks."""
    return float(blocks) if judged.verdict.probability is None else probability(score)
