"""``python -m benchmarks``: run the benchmarks and print a table of each."""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import torch

from benchmarks import cost_report
from benchmarks.bank import bank
from benchmarks.cost import cost
from benchmarks.encoding import chosen_prompts, encoding
from benchmarks.end_to_end import check, check_batch, evidence
from benchmarks.lite import lite, start
from benchmarks.memory import memory
from benchmarks.pipeline import pipeline
from benchmarks.report import Figure, table
from benchmarks.scoring import scoring
from benchmarks.settings import QUICK, Settings
from latentguard.arrays import NumpyDevice, chosen_device
from latentguard.errors import DataError, EncoderError, LatentGuardError
from latentguard.files import atomic_path, check_target

BENCHMARKS: dict[str, Callable[[Settings], list[Figure]]] = {
    "encoding": encoding,
    "scoring": scoring,
    "check": check,
    "evidence": evidence,
    "check_batch": check_batch,
    "bank": bank,
    "memory": memory,
    "cost": cost,
    "pipeline": pipeline,
    "lite": lite,
    "start": start,
}
_TABLES: dict[str, Callable[[Sequence[Figure]], str]] = {"cost": cost_report.tables}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmarks asked for; returns the exit status: 1 with --strict if a figure falls short, else 0."""
    parser = _parser()
    given = parser.parse_args(arguments)
    names = given.only or list(BENCHMARKS)
    try:
        # Whatever could go wrong at the end goes wrong now, before minutes of measuring.
        _check(given)
        settings = replace(
            QUICK if given.quick else Settings(),
            threads=given.threads,
            device=_device(given.device),
            prompt_files=tuple(given.prompts),
        )
        if given.prompts:
            chosen_prompts(settings)
        known = None if given.from_json is None else _read(given.from_json)
        if known is None and "cost" not in names and (given.plots is not None or given.document is not None):
            raise DataError("--plots and --document show the benchmark cost, which --only leaves out")
        if known is not None and not any(figure.benchmark == "cost" for figure in known[1]):
            raise DataError(f"{given.from_json}: has no figures of the benchmark cost")
    except LatentGuardError as error:
        parser.error(str(error))
    circumstances, figures = known or _measured(names, settings)
    costs = [figure for figure in figures if figure.benchmark == "cost"]
    if known is not None:
        print(f"{circumstances}\n\n{cost_report.tables(costs)}")
    if given.json is not None:
        described = {"circumstances": circumstances, "figures": [figure.as_dict() for figure in figures]}
        with atomic_path(given.json) as temporary:
            temporary.write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    if given.plots is not None:
        _draw(costs, given.plots)
    if given.document is not None:
        cost_report.rewrite(given.document, circumstances, costs)
    return 1 if given.strict and any(figure.missed for figure in figures) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", action="append", choices=BENCHMARKS, help="run this one; may be given several times")
    parser.add_argument("--threads", type=_positive, default=2, help="threads of PyTorch and ONNX Runtime (default: 2)")
    parser.add_argument("--device", default="cpu", help="where cost is measured (default: cpu); the rest is on the cpu")
    parser.add_argument("--prompts", nargs="+", default=[], metavar="FILE", help="encode these instead of made-up ones")
    parser.add_argument("--quick", action="store_true", help="fewer runs and no large bank")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE as well")
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="draw cost-time.png and cost-memory.png there")
    parser.add_argument("--document", type=Path, metavar="FILE", help="put the tables of cost between FILE's two marks")
    parser.add_argument(
        "--from-json", type=Path, metavar="FILE", help="measure nothing: show the cost that an earlier --json wrote"
    )
    parser.add_argument("--strict", action="store_true", help="exit with status 1 if a figure falls short")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return value


def _device(name: str) -> str:
    """The device that PyTorch knows by that name, or that "auto" is here; EncoderError if there is none."""
    device = chosen_device(name)
    if isinstance(device, NumpyDevice):
        raise EncoderError(f"{name}: the costs are those of PyTorch; give cpu or a GPU")
    return str(device)


def _check(given: argparse.Namespace) -> None:
    """LatentGuardError for what can't be read or written."""
    if given.json is not None:
        check_target(given.json)
    if given.plots is not None:
        try:
            given.plots.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{given.plots}: can't be made: {error.strerror}") from error
        check_target(given.plots / "cost-time.png")
    if given.document is not None:
        cost_report.around_tables(given.document)
        check_target(given.document)


def _read(path: Path) -> tuple[str, list[Figure]]:
    """Circumstances and figures that --json wrote; DataError for any other file."""
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
        return str(described["circumstances"]), [Figure.from_dict(written) for written in described["figures"]]
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: not a file that --json wrote") from error


def _measured(names: Sequence[str], settings: Settings) -> tuple[str, list[Figure]]:
    """Circumstances and figures, each benchmark's shown as soon as it is done."""
    torch.set_num_threads(settings.threads)
    circumstances = _circumstances(names, settings)
    print(circumstances)
    figures: list[Figure] = []
    for place, name in enumerate(names, 1):
        if sys.stderr.isatty():
            print(f"benchmark {place} of {len(names)}", file=sys.stderr)
        print(f"\n{name}\n", flush=True)
        found = BENCHMARKS[name](settings)
        print(_TABLES.get(name, table)(found), flush=True)
        figures += found
    return circumstances, figures


def _draw(costs: Sequence[Figure], folder: Path) -> None:
    # Here and not above: the figures alone need no matplotlib.
    from benchmarks.plots import plot_cost_memory, plot_cost_time

    plot_cost_time(costs, folder / "cost-time.png")
    if any(figure.unit == "MB" for figure in costs):
        plot_cost_memory(costs, folder / "cost-memory.png")


def _circumstances(names: Sequence[str], settings: Settings) -> str:
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "onnxruntime"))
    where = _processor()
    device = torch.device(settings.device)
    if "cost" in names and device.type == "cuda":
        where = f"{where}, cost on {torch.cuda.get_device_name(device)}"
    threads = f"{settings.threads} thread{'' if settings.threads == 1 else 's'}"
    return f"Python {platform.python_version()}, {libraries}, {threads}, {where}"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


if __name__ == "__main__":
    sys.exit(main())
