"""Progress: with the rate and the time that is left on a terminal, and nowhere else."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
from pathlib import Path

import pytest
from cli_runner import command, run
from tables import write_prompts

from latentguard.screening.progress import Progress


def test_the_rest_is_told_from_the_bytes_that_were_read(capsys: pytest.CaptureFixture[str]) -> None:
    bar = Progress(1_000)
    assert bar.expected is None
    bar.advance(10, 100)
    assert bar.expected == 100
    bar.advance(30, 100)
    assert bar.expected == 200
    bar.advance(160, 800)
    assert bar.expected == 200
    bar.close()
    assert capsys.readouterr().err == ""


def test_what_an_earlier_run_did_is_done() -> None:
    bar = Progress(1_000, rows=50, read=500)
    assert bar.expected == 100
    bar.close()


def test_a_terminal_shows_rate_and_time_left_and_a_file_nothing(embedded_weights: Path, tmp_path: Path) -> None:
    path = write_prompts(tmp_path / "in.csv", [f"knight number {n} with sword and shield" for n in range(600)])
    arguments = ["--file_path", path, "--output", tmp_path / "out", "--model", embedded_weights]
    options = ["--part-rows", "100"]
    terminal, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
    with subprocess.Popen(command(*arguments, *options), stdout=subprocess.PIPE, stderr=theirs) as process:
        os.close(theirs)
        shown = b""
        try:
            while chunk := os.read(terminal, 65_536):
                shown += chunk
        except OSError:  # the other end is closed
            pass
        os.close(terminal)
        assert process.wait() == 0
    assert re.search(r"screening: +\d+%.*\d+/\d+ \[\d\d:\d\d<\d\d:\d\d, .*prompts/s\]", shown.decode())
    (tmp_path / "other").mkdir()
    arguments[3] = tmp_path / "other" / "out.csv"
    assert run(*arguments, *options).stderr == ""
