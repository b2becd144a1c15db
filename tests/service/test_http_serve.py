"""`python -m latentguard serve` as a process: its first start, its options, and an end that loses nothing."""

from __future__ import annotations

import os
import re
import signal
import ssl
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from latentguard.cli import main
from latentguard.service.audit import open_audit
from latentguard.service.database import Database
from latentguard.service.server import listening
from latentguard.service.settings import Settings
from latentguard.service.tls import fingerprint


class Process:
    """A service started by command, on free ports."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        command = [sys.executable, "-m", "latentguard", "serve", "--data-dir", str(folder), "--port", "0", *options]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("LATENTGUARD_SERVICE")}
        environment |= {"LATENTGUARD_SERVICE_CLASSIFIERS": "", "LATENTGUARD_SERVICE_HTTP_PORT": "0"}
        self.process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def greeting(self) -> list[str]:
        """What it says once it serves."""
        lines = []
        stdout = self.process.stdout
        while stdout is not None and (line := stdout.readline()):
            lines.append(line.rstrip("\n"))
            if line.startswith("no image pipeline"):
                return lines
        raise RuntimeError(self.process.communicate(timeout=10)[1])

    def client(self, url: str) -> httpx.Client:
        """A client with the key of the first start."""
        trust = ssl.create_default_context(cafile=str(self.folder / "tls" / "certificate.pem"))
        token = (self.folder / "admin.key").read_text().strip()
        return httpx.Client(base_url=url, verify=trust, headers={"X-API-Key": token}, timeout=30)


@contextmanager
def process(folder: Path, *options: str) -> Iterator[Process]:
    """A service, killed at the end if it is still there."""
    made = Process(folder, *options)
    try:
        yield made
    finally:
        if made.process.poll() is None:
            made.process.kill()
        made.process.communicate(timeout=10)


def url_of(lines: list[str]) -> str:
    found = re.search(r"https://127\.0\.0\.1:\d+", lines[0])
    if found is None:
        raise ValueError("it doesn't say where it listens")
    return found[0]


def test_a_first_start_works_and_sigterm_under_load_loses_no_accepted_request(
    tmp_path: Path, embedded_weights: Path
) -> None:
    folder = tmp_path / "data"
    answered, refused, broken = [], [], []
    stop = threading.Event()
    with process(folder, "--model", str(embedded_weights)) as service:
        lines = service.greeting()
        url = url_of(lines)
        key_file, certificate = folder / "admin.key", folder / "tls" / "certificate.pem"
        assert f"certificate: {certificate}, SHA-256 {fingerprint(certificate)}" in lines
        assert f"admin key, made now: {key_file}" in lines
        assert [stat.S_IMODE(path.stat().st_mode) for path in (key_file, folder)] == [0o600, 0o700]
        token = key_file.read_text().strip()

        def load(number: int) -> None:
            with service.client(url) as client:
                while not stop.is_set():
                    try:
                        answer = client.post("/v1/screen", json={"prompts": [f"tea {number}"] * 4})
                        answered.append(answer)
                    except httpx.ConnectError:
                        refused.append(number)
                        return
                    except httpx.HTTPError as error:
                        broken.append(repr(error))
                        return

        threads = [threading.Thread(target=load, args=(number,)) for number in range(12)]
        for thread in threads:
            thread.start()
        until = time.monotonic() + 30
        while len(answered) < 40 and time.monotonic() < until:
            time.sleep(0.02)
        service.process.send_signal(signal.SIGTERM)
        _, said = service.process.communicate(timeout=30)
        stop.set()
        for thread in threads:
            thread.join(30)
    assert service.process.returncode == 0, said
    assert broken == []
    assert len(refused) == 12
    assert {answer.status_code for answer in answered} == {200}
    settings = Settings(data_dir=folder)
    database = Database(settings.database_location())
    audit = open_audit(settings, database)
    entries = [entry for entry in audit.stream() if entry.action == "screen"]
    assert {answer.json()["request_id"] for answer in answered} == {entry.details["request"] for entry in entries}
    assert len(entries) == 4 * len(answered)
    assert audit.verify().intact
    database.close()
    assert "Traceback" not in said
    assert "tea" not in said
    assert token not in "\n".join([*lines, said])


def test_check_looks_at_the_settings_and_starts_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = tmp_path / "good.toml"
    good.write_text("port = 9443\nmax_batch = 8\n")
    assert main(["serve", "--check", "--config", str(good), "--data-dir", str(tmp_path / "data")]) == 0
    assert "https://127.0.0.1:9443" in capsys.readouterr().out
    assert not (tmp_path / "data").exists()
    bad = tmp_path / "bad.toml"
    bad.write_text("max_batch = 0\ncolour = 'red'\n")
    assert main(["serve", "--check", "--config", str(bad)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert ("max_batch" in said.err, "colour" in said.err, len(said.err.splitlines())) == (True, True, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--host", "0.0.0.0"], "keys create"), (["--tls-certificate", "x.pem"], "give both or neither")],
    ids=["outside", "half-a-pair"],
)
def test_what_it_refuses_to_start_with(
    options: list[str],
    message: str,
    tmp_path: Path,
    embedded_weights: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LATENTGUARD_SERVICE_CLASSIFIERS", "")
    more = ["--data-dir", str(tmp_path / "data"), "--port", "0", "--http-port", "0", "--model", str(embedded_weights)]
    # Without a key it ends before it binds the address.
    assert main(["serve", *options, *more]) == 2
    said = capsys.readouterr()
    assert (said.out, len(said.err.splitlines())) == ("", 1)
    assert message in said.err
    assert not (tmp_path / "data" / "admin.key").exists()


def test_a_port_that_is_taken_is_named(
    tmp_path: Path,
    embedded_weights: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LATENTGUARD_SERVICE_CLASSIFIERS", "")
    with listening("127.0.0.1", 0, "port") as taken:
        port = str(taken.getsockname()[1])
        options = ["--port", port, "--http-port", "0", "--data-dir", str(tmp_path), "--model", str(embedded_weights)]
        assert main(["serve", *options]) == 2
    assert f"port: can't listen on 127.0.0.1 at {port}" in capsys.readouterr().err
