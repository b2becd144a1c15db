"""A client that hangs up in the middle of its body is no error of the service's."""

from __future__ import annotations

import logging
import socket
import ssl
import time
from pathlib import Path

import pytest
from running_service import running_service

from latentguard import LatentGuard
from latentguard.service.access import Scope


def test_a_client_that_hangs_up_within_its_body_counts_as_499(
    tmp_path: Path, tiny_guard: LatentGuard, caplog: pytest.LogCaptureFixture
) -> None:
    with running_service(tmp_path, tiny_guard) as running:
        request = (
            "POST /v1/screen HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n"
            f"Authorization: Bearer {running.token(Scope.screen)}\r\n\r\n"
        ) + '{"prompt": "'
        context = ssl.create_default_context(cafile=str(running.certificate))
        address = ("127.0.0.1", int(running.url.rpartition(":")[2]))
        with context.wrap_socket(socket.create_connection(address), server_hostname="127.0.0.1") as connection:
            connection.sendall(request.encode())
            time.sleep(0.5)  # the service is reading the body by then
        labels = {"method": "POST", "route": "/v1/screen", "status": "499"}
        registry, until = running.services.metrics.registry, time.monotonic() + 10
        while not (counted := registry.get_sample_value("latentguard_requests_total", labels)):
            assert time.monotonic() < until
            time.sleep(0.02)
    assert counted == 1
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
