"""A full disk: nothing is answered that can't be written down, and all goes on when there is room again."""

from __future__ import annotations

import errno
import resource
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest
from faulty_world import SETTINGS, http, intact, recorded, screened

from benchmarks.service_process import ServiceProcess, until

_MOUNTED_BYTES = 16 * 2**20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MiB, where this process may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    made = (
        mount is not None
        and not subprocess.run(
            [mount, "-t", "tmpfs", "-o", f"size={_MOUNTED_BYTES},mode=700", "tmpfs", folder], capture_output=True
        ).returncode
    )
    if not made:
        pytest.skip("this process may not mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def fill(path: Path) -> None:
    """Writes until there is no room."""
    with closing(path.open("wb", buffering=0)) as file:
        for size in (2**16, 2**9, 1):
            try:
                while file.write(b"\0" * size):
                    pass
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise


def asked_until(client: httpx.Client, status: int, most: int = 500) -> list[httpx.Response]:
    """The answers up to the first of this status."""
    answers = [screened(client)]
    while answers[-1].status_code != status and len(answers) < most:
        answers.append(screened(client))
    return answers


def check_after(client: httpx.Client, full: list[httpx.Response]) -> None:
    """Whether a full disk was told as it should be, and everything answered is in a log that verifies."""
    assert full[-1].status_code == 503
    assert full[-1].json()["code"] == "audit_unavailable"
    assert "disk" not in full[-1].text
    answers = list(full)
    assert until(lambda: answers.append(screened(client)) or answers[-1].status_code == 200, 20)
    assert {answer.headers["x-request-id"] for answer in answers if answer.status_code == 200} <= recorded(client)
    assert intact(client)


def test_a_disk_without_room(small_disk: Path, embedded_weights: Path) -> None:
    settings = SETTINGS | {"model": str(embedded_weights)}
    with ServiceProcess(small_disk, settings) as service, http(service) as client:
        assert screened(client).status_code == 200
        fill(small_disk / "filling")
        full = asked_until(client, 503)
        ready = client.get("/healthz")
        (small_disk / "filling").unlink()
        check_after(client, full)
    assert ready.status_code == 200


def test_files_that_may_not_grow(tmp_path: Path, embedded_weights: Path) -> None:
    settings = SETTINGS | {"model": str(embedded_weights)}
    with ServiceProcess(tmp_path, settings) as service, http(service) as client:
        assert screened(client).status_code == 200
        written = (service.data / "service.db-wal").stat().st_size
        before = resource.prlimit(service.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(service.pid, resource.RLIMIT_FSIZE, (written, before[1]))
        full = asked_until(client, 503)
        resource.prlimit(service.pid, resource.RLIMIT_FSIZE, before)
        check_after(client, full)
