"""kill -9 under load: what was answered is in the audit log, and the service starts again as if nothing had been."""

from __future__ import annotations

from pathlib import Path

from faulty_world import SETTINGS, http, intact, recorded, screened, under_load

from benchmarks.service_process import ServiceProcess, until


def test_kill_9_under_load_loses_no_answered_request(tmp_path: Path, embedded_weights: Path) -> None:
    service = ServiceProcess(tmp_path, SETTINGS | {"model": str(embedded_weights), "max_batch": "8"})
    service.start()
    try:
        with under_load(service, clients=16) as load:
            assert until(lambda: len(load.answered) >= 200, 30)
            service.kill()
            assert until(lambda: load.lost >= 16, 30)
        answered = set(load.answered)
        service.start()
        with http(service) as client:
            assert answered <= recorded(client)
            assert intact(client)
            assert screened(client).status_code == 200
            assert intact(client)
        assert service.stop() == 0
    finally:
        if service.alive:
            service.kill()
    assert load.statuses == {200: len(load.answered)}
