"""Malformed requests, a few hundred of those that `make fuzz-service` sends: no 500, no leak, no end."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("schemathesis")

from benchmarks.service_fuzz import SETTINGS, Found, fuzz, judge
from benchmarks.service_process import ServiceProcess

_SEED = 1


def test_malformed_requests_are_refused_and_tell_nothing(tmp_path: Path, embedded_weights: Path) -> None:
    settings = SETTINGS | {"model": str(embedded_weights), "classifiers": ""}
    with ServiceProcess(tmp_path, settings) as service:
        found = fuzz(service, 400, _SEED)
        assert service.stop() == 0
        service.start()
    assert found.faults == []
    assert found.sent >= 350
    assert sum(count for status, count in found.statuses.items() if 400 <= status < 500) >= 100
    assert found.statuses[200] >= 10


@pytest.mark.parametrize(
    ("status", "kind", "text"),
    [
        (500, "application/problem+json", '{"code": "internal_error"}'),
        (503, "text/plain", "busy"),
        (422, "application/problem+json", '{"detail": "no code"}'),
        (404, "text/html", "no /usr/lib/python3/thing"),
        (400, "text/html", 'File "app", line 3'),
    ],
    ids=["internal", "no-problem", "no-code", "path", "stack"],
)
def test_what_an_answer_must_not_be_is_found(tmp_path: Path, status: int, kind: str, text: str) -> None:
    found = Found()
    judge(status, kind, text, "a request", ServiceProcess(tmp_path), found)
    assert len(found.faults) == 1
