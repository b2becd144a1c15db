"""Memory stays what it is however large a file is: runs of the real command, measured by the system."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cli_runner import command

PROMPTS = [f"knight number {n} with sword and shield, " + "highly detailed, " * 12 for n in range(100)]
FEW, MANY = 10_000, 200_000


def written(path: Path, rows: int) -> Path:
    """A file of so many rows of some 250 bytes, which hold the same 100 prompts over and over."""
    if path.suffix == ".parquet":
        with pq.ParquetWriter(path, pa.schema([("id", pa.int64()), ("prompt", pa.string())])) as writer:
            for start in range(0, rows, FEW):  # row groups of one size, since one is in memory at a time
                ids = range(start, min(rows, start + FEW))
                prompts = [PROMPTS[n % len(PROMPTS)] for n in ids]
                writer.write_table(pa.table({"id": pa.array(ids, pa.int64()), "prompt": prompts}))
    else:
        with pa.CompressedOutputStream(str(path), "zstd") as stream:
            stream.write(b"id,prompt\n")
            for n in range(rows):
                stream.write(f'{n},"{PROMPTS[n % len(PROMPTS)]}"\n'.encode())
    return path


def most_memory(*arguments: str | Path) -> int:
    """The largest resident size, in bytes, that a run of `inference.py` reached."""
    process = subprocess.Popen(command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    process.stdout.close()
    assert process.returncode == 0, output
    return usage.ru_maxrss * 1024


@pytest.mark.parametrize(
    ("source", "output"),
    [
        pytest.param("in.csv.zst", "out", id="csv.zst to a folder"),
        pytest.param("in.parquet", "out.csv", id="parquet to csv"),
    ],
)
def test_memory_does_not_grow_with_the_file(embedded_weights: Path, tmp_path: Path, source: str, output: str) -> None:
    used = {}
    for rows in (FEW, MANY):
        folder = tmp_path / str(rows)
        folder.mkdir()
        path = written(folder / source, rows)
        options = ("--model", embedded_weights, "--part-rows", "8192", "--keep", "id")
        used[rows] = most_memory("--file_path", path, "--output", folder / output, *options)
    # Read whole, they would be 47 MB of prompts and as many Python strings.
    assert used[MANY] - used[FEW] < 48 * 2**20
