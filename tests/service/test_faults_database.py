"""The database gone, or held by somebody else, and back again: nothing is answered that isn't written down."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest
from faulty_world import SETTINGS, http, intact, recorded, screened, under_load
from postgresql_server import Server

from benchmarks.service_process import ServiceProcess, until

_CODES = {"audit_unavailable", "database_unavailable"}


@pytest.fixture
def on_postgresql(
    tmp_path: Path, embedded_weights: Path, postgresql_running: Server, postgresql_url: str
) -> Iterator[ServiceProcess]:
    settings = SETTINGS | {"model": str(embedded_weights), "database_url": postgresql_url}
    with ServiceProcess(tmp_path, settings) as service:
        yield service


def refused(answer: httpx.Response) -> bool:
    """Whether an answer says, and says no more than, that the service can't answer."""
    body = answer.json()
    return answer.status_code == 503 and body["code"] in _CODES and "results" not in body and "pg" not in answer.text


def test_postgresql_stopped_and_started_under_traffic(
    on_postgresql: ServiceProcess, postgresql_running: Server
) -> None:
    service = on_postgresql
    with http(service) as client:
        with under_load(service, clients=4) as load:
            assert until(lambda: len(load.answered) >= 20, 30)
            postgresql_running.stop()
            try:
                time.sleep(0.5)  # what was committed before may still be on its way
                before = len(load.answered)
                while_gone = [screened(client) for _ in range(5)]
                ready = client.get("/readyz")
                time.sleep(2.5)  # longer than a key's row is remembered
                while_gone.append(screened(client))
                during = len(load.answered) - before
            finally:
                postgresql_running.start()
            assert until(lambda: len(load.answered) >= before + 20, 30)
        assert all(map(refused, while_gone))
        assert ready.status_code == 503
        assert during == 0
        assert set(load.answered) <= recorded(client)
        assert intact(client)
    assert set(load.statuses) == {200, 503}
    assert load.lost == 0


def test_sqlite_locked_by_another_process_for_a_while(tmp_path: Path, embedded_weights: Path) -> None:
    settings = SETTINGS | {"model": str(embedded_weights), "request_timeout_s": "1"}
    with ServiceProcess(tmp_path, settings) as service, http(service) as client:
        assert screened(client).status_code == 200
        with closing(sqlite3.connect(service.data / "service.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            locked = screened(client)
            alive = client.get("/healthz")
            other.execute("ROLLBACK")
        assert (locked.status_code, locked.json()["code"]) == (504, "deadline_exceeded")
        assert alive.status_code == 200
        answers = []
        assert until(lambda: answers.append(screened(client)) or answers[-1].status_code == 200, 20)
        assert {answer.headers["x-request-id"] for answer in answers if answer.status_code == 200} <= recorded(client)
        assert intact(client)
