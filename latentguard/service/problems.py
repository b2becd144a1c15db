"""Errors as responses, and as what OpenAPI says of them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

from latentguard.service.errors import INTERNAL, Problem, Told, problem_of
from latentguard.service.schemas import ProblemBody

MEDIA_TYPE = "application/problem+json"
_EXAMPLE_ID = "5f0c1a2b3c4d5e6f708192a3b4c5d6e7"


def problem_response(request_id: str, error: Told, more: Mapping[str, Any] | None = None) -> Response:
    """The response for an error; ``more`` are further members of its body."""
    headers = {}
    if error.retry_after is not None:
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after)))
    if error.problem.status == 401:
        headers["www-authenticate"] = 'Bearer realm="latentguard"'
    # ASCII alone: a client may have sent half of a surrogate pair, which no other encoding takes.
    content = json.dumps(_members(request_id, error.problem, error.detail) | dict(more or {}), allow_nan=False)
    return Response(content, error.problem.status, headers, MEDIA_TYPE)


def documented(*kinds: type[Exception] | Problem) -> dict[int | str, dict[str, Any]]:
    """The `responses` of an operation that may end in these errors, with an example of each."""
    by_status: dict[int | str, dict[str, Any]] = {}
    for kind in (*kinds, INTERNAL):
        problem = kind if isinstance(kind, Problem) else problem_of(kind)
        known = by_status.setdefault(
            problem.status,
            {"description": problem.title, "model": ProblemBody, "content": {MEDIA_TYPE: {"examples": {}}}},
        )
        value = _members(_EXAMPLE_ID, problem, problem.title)
        known["content"][MEDIA_TYPE]["examples"][problem.code] = {"summary": problem.title, "value": value}
    return by_status


def _members(request_id: str, problem: Problem, detail: str) -> dict[str, Any]:
    return {
        "type": f"urn:latentguard:problem:{problem.code}",
        "title": problem.title,
        "status": problem.status,
        "code": problem.code,
        "detail": detail,
        "request_id": request_id,
    }
