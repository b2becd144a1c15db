"""``python -m benchmarks.screening``: how many prompts a second are read, screened and recognised as seen before.

Everything is run as a user runs it, on files that are made up for it. What a screening command takes to start is left
out: its rate is that of the parts after its first ones.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.made_up import prompts
from latentguard.records import PromptFile

_KINDS = (".txt", ".csv", ".tsv", ".jsonl", ".parquet", ".csv.gz", ".csv.zst", ".jsonl.gz", ".jsonl.zst")
_SHARE_REPEATED = 0.3
_SHARE_NEAR = 0.2


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the rates asked for; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.screening", description=__doc__)
    parser.add_argument("--only", action="append", choices=_MEASURES, help="measure this; may be given several times")
    parser.add_argument("--rows", type=int, default=200_000, help="rows of the files that are read (default: 200000)")
    parser.add_argument("--prompts", type=int, default=12_000, help="prompts that are screened (default: 12000)")
    given = parser.parse_args(arguments)
    for name in given.only or _MEASURES:
        with tempfile.TemporaryDirectory() as folder:
            print(_MEASURES[name](Path(folder), given), flush=True)
    return 0


def _reading(folder: Path, given: argparse.Namespace) -> str:
    rows = prompts(given.rows)
    lines = ["| file | size, MB | rows/s read |", "|---|---|---|"]
    for kind in _KINDS:
        path = _written(folder / f"prompts{kind}", rows)
        start = time.perf_counter()
        count = sum(1 for _ in PromptFile(path, fields=()))
        rate = count / (time.perf_counter() - start)
        lines.append(f"| {kind} | {path.stat().st_size / 1e6:.1f} | {rate:,.0f} |")
    return "\n".join(lines)


def _screening(folder: Path, given: argparse.Namespace) -> str:
    path = _written(folder / "prompts.csv", _different(given.prompts))
    lines = ["| engine | prompts/s |", "|---|---|"]
    for name, options in (
        ("local, all cores", ()),
        ("Ray, 1 worker on one core", ("--engine", "ray", "--workers", "1")),
        ("Ray, 2 workers on a core each", ("--engine", "ray", "--workers", "2")),
    ):
        output = folder / name.replace(" ", "-")
        _run("--file_path", path, "--output", output, "--part-rows", str(max(1, given.prompts // 40)), *options)
        lines.append(f"| {name} | {_rate(output):,.0f} |")
    return "\n".join(lines)


def _duplicates(folder: Path, given: argparse.Namespace) -> str:
    path = _written(folder / "prompts.csv", _with_duplicates(given.prompts))
    lines = ["| options | seconds | what the run says |", "|---|---|---|"]
    for options in (("--cache", "0"), (), ("--near-duplicates", "0.7")):
        output = folder / "-".join(["out", *options]).replace(".", "")  # a name with a suffix would be a file
        start = time.perf_counter()
        said = _run("--file_path", path, "--output", output, *options).partition(": ")[2].strip()
        lines.append(f"| {' '.join(options) or '(none)'} | {time.perf_counter() - start:.0f} | {said} |")
    return "\n".join(lines)


_MEASURES = {"reading": _reading, "screening": _screening, "duplicates": _duplicates}


def _run(*arguments: str | Path) -> str:
    """What the command prints; where it fails, the benchmark ends with its error."""
    command = [sys.executable, "-m", "latentguard", "screen", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return done.stdout


def _rate(output: Path) -> float:
    """Prompts a second, from the time when an eighth of the parts was there to that of the last one."""
    parts = sorted((path.stat().st_mtime_ns, path) for path in output.glob("part-*.parquet"))
    skipped = max(1, len(parts) // 8)
    rows = sum(pq.read_metadata(path).num_rows for _, path in parts[skipped:])
    return float(rows / ((parts[-1][0] - parts[skipped - 1][0]) / 1e9))


def _different(count: int) -> list[str]:
    return list(dict.fromkeys(prompts(4 * count)))[:count]


def _with_duplicates(count: int) -> list[str]:
    """Prompts in random order: some repeat another one, some have its phrases in another order."""
    chosen = random.Random(0)
    repeated, near = int(count * _SHARE_REPEATED), int(count * _SHARE_NEAR)
    found = _different(count - repeated - near)
    found += chosen.choices(found, k=repeated)
    long = [prompt for prompt in found if prompt.count(", ") > 2]
    for prompt in chosen.choices(long, k=near):
        scene, *styles = prompt.split(", ")
        found.append(", ".join([scene, *chosen.sample(styles, len(styles))]))
    chosen.shuffle(found)
    return found


def _written(path: Path, rows: Sequence[str]) -> Path:
    plain = path.with_name(path.name.removesuffix(".gz").removesuffix(".zst"))
    if plain.suffix == ".parquet":
        pq.write_table(pa.table({"id": range(len(rows)), "prompt": list(rows)}), plain)
    else:
        with open(plain, "w", newline="", encoding="utf-8") as file:
            if plain.suffix == ".txt":
                file.writelines(f"{prompt}\n" for prompt in rows)
            elif plain.suffix == ".jsonl":
                file.writelines(json.dumps({"id": n, "prompt": prompt}) + "\n" for n, prompt in enumerate(rows))
            else:
                delimiter = "\t" if plain.suffix == ".tsv" else ","
                csv.writer(file, delimiter=delimiter).writerows([("id", "prompt"), *enumerate(rows)])
    if plain != path:
        with pa.CompressedOutputStream(str(path), {".gz": "gzip", ".zst": "zstd"}[path.suffix]) as stream:
            stream.write(plain.read_bytes())
    return path


if __name__ == "__main__":
    sys.exit(main())
