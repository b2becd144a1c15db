"""Prompt files and verdict files of every format, written and read for tests without the project's own code."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def write_prompts(path: Path, prompts: Sequence[str], column: str = "prompt") -> Path:
    """A prompt file in the format of its suffix, with a second column where the format has columns."""
    rows = [{"id": number, column: prompt} for number, prompt in enumerate(prompts)]
    if path.suffix == ".txt":
        path.write_text("".join(f"{prompt}\n" for prompt in prompts), encoding="utf-8")
    elif path.suffix == ".csv":
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["id", column])
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a verdict file, each value in its type."""
    if path.suffix == ".csv":
        with open(path, newline="", encoding="utf-8") as file:
            return [
                row | {"score": float(row["score"]), "blocked": {"true": True, "false": False}[row["blocked"]]}
                for row in csv.DictReader(file)
            ]
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return rows
