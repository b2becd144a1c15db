"""A service in a process of its own: started as an operator would, on a free port of this machine."""

from __future__ import annotations

import os
import re
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

_PREFIX = "LATENTGUARD_SERVICE_"
_URL = re.compile(r"listens on https://127\.0\.0\.1:(\d+),")
_START_SECONDS = 120.0
_STOP_SECONDS = 60.0


@dataclass
class ServiceProcess:
    """``python -m latentguard serve`` on `folder`/data, with these settings.

    ::

        with ServiceProcess(folder, {"max_batch": "1"}) as service:
            service.port, service.tls, service.token

    Attributes:
        folder: where data and output go; a later process with the same folder goes on where this one ended.
        settings: by name, as the environment has them.
        port: of HTTPS; known once it is started.
    """

    folder: Path
    settings: Mapping[str, str] = field(default_factory=dict)
    port: int = 0
    _process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> ServiceProcess:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def data(self) -> Path:
        """The service's data folder."""
        return self.folder / "data"

    @property
    def pid(self) -> int:
        """The process's number. RuntimeError if it was never started."""
        return self._started().pid

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def token(self) -> str:
        """The admin key that the service made at its first start."""
        return (self.data / "admin.key").read_text(encoding="ascii").strip()

    @property
    def tls(self) -> ssl.SSLContext:
        """A context that trusts the service's own certificate and no other."""
        return ssl.create_default_context(cafile=str(self.certificate))

    @property
    def certificate(self) -> Path:
        """The service's self-signed certificate."""
        return self.data / "tls" / "certificate.pem"

    @property
    def log(self) -> str:
        """What the process wrote to standard error, over all its starts."""
        return (self.folder / "stderr").read_text(encoding="utf-8", errors="replace")

    def start(self) -> None:
        """Starts it, and returns once it listens. RuntimeError with the end of its output if it doesn't."""
        self.folder.mkdir(parents=True, exist_ok=True)
        environment = {name: value for name, value in os.environ.items() if not name.upper().startswith(_PREFIX)}
        environment |= {_PREFIX + name.upper(): value for name, value in self.settings.items()}
        output = self.folder / "stdout"
        command = [sys.executable, "-m", "latentguard", "serve", "--port", "0", "--http-port", "0"]
        with output.open("wb") as out, (self.folder / "stderr").open("ab") as err:
            self._process = subprocess.Popen(
                [*command, "--data-dir", str(self.data)], stdout=out, stderr=err, env=environment
            )

        def said() -> re.Match[str] | None:
            return _URL.search(output.read_text(encoding="utf-8"))

        until(lambda: said() or not self.alive, _START_SECONDS)
        match = said()
        if match is None:
            self.kill()
            raise RuntimeError(f"the service didn't start:\n{self.log[-2000:]}")
        self.port = int(match[1])

    def stop(self) -> int:
        """Asks it to end, as an operator would, and returns its exit status."""
        process = self._started()
        process.send_signal(signal.SIGTERM)
        try:
            return process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            raise RuntimeError("the service didn't end when it was asked to") from None

    def kill(self) -> None:
        """Ends it at once, as a crash would."""
        process = self._started()
        process.kill()
        process.wait(_STOP_SECONDS)

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Runs another command of latentguard on the same data."""
        return subprocess.run(
            [sys.executable, "-m", "latentguard", *arguments, "--data-dir", str(self.data)],
            capture_output=True,
            text=True,
            timeout=_START_SECONDS,
            env=os.environ | {_PREFIX + name.upper(): value for name, value in self.settings.items()},
        )

    def processor_seconds(self) -> float:
        """The processor time that it has used so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def resident_bytes(self) -> int:
        """The memory that it holds."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError("the service was not started")
        return self._process


def until(condition: Callable[[], object], seconds: float, every: float = 0.05) -> bool:
    """Waits for a condition to hold; whether it did within this time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(every)
    return True
