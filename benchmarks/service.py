"""``python -m benchmarks.service``: many clients at once, with batching and without, on this machine alone.

Services are started as an operator would start them, on a free port and with an empty data folder each. They take turns
under load, so that whatever else the machine does hits all of them: one with the defaults; one with ``max_batch`` 1,
which screens and records prompt by prompt, under the same load; and one such whose calls come one after another.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.report import Figure, table
from benchmarks.service_load import Client, Load, clients_of, put_load
from benchmarks.service_process import ServiceProcess
from latentguard.files import atomic_path
from latentguard.shipped import shipped_path

WANTED_RATIO = 3.0
_UNBATCHED = {"max_batch": "1"}
_WARM_UP_SECONDS = 3.0
_METRIC = re.compile(r"^(latentguard_batch_prompts_(?:sum|count)) (\S+)$", re.MULTILINE)


@dataclass
class Measured:
    """A service under load, and what it took.

    Attributes:
        load: what the clients saw, over all rounds.
        passes: passes of the encoder, with `prompts` prompts in all.
        server: processor time of the service [s]; `client` that of the load generator, in the same rounds.
    """

    service: ServiceProcess
    clients: list[Client] = field(default_factory=list)
    load: Load = field(default_factory=Load)
    passes: float = 0.0
    prompts: float = 0.0
    server: float = 0.0
    client: float = 0.0

    @property
    def throughput(self) -> float:
        """Answered prompts per second."""
        return len(self.load.latencies) / self.load.seconds

    def percentile(self, percent: float) -> float:
        """Of the time to an answer, in ms."""
        return float(np.percentile(self.load.latencies, percent)) * 1e3 if self.load.latencies else float("nan")

    def lines(self, name: str) -> list[str]:
        """What happened, for a reader."""
        load, refused = self.load, self.load.statuses[429]
        errors = sum(load.statuses.values()) - len(load.latencies) - refused + load.lost
        return [
            f"{name}: {sum(load.statuses.values()):,} requests in {load.seconds:.0f} s, {self.throughput:.1f} a second",
            f"  latency p50 {self.percentile(50):.0f} ms, p99 {self.percentile(99):.0f} ms; "
            f"{refused} times 429, {errors} errors",
            f"  {self.prompts / max(1.0, self.passes):.1f} prompts a pass of the encoder; "
            f"processors busy: service {100 * self.server / load.seconds:.0f} %, "
            f"load generator {100 * self.client / load.seconds:.0f} %",
        ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures and prints; returns the exit status: 1 with --strict if batching isn't worth what is wanted, else 0."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.service", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="of load for each service (default: 60)")
    parser.add_argument("--round", type=float, default=10.0, help="seconds until the services take turns (default: 10)")
    parser.add_argument("--clients", type=int, default=64, help="at once (default: 64)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE as well")
    parser.add_argument("--strict", action="store_true", help="exit with status 1 if a figure falls short")
    given = parser.parse_args(arguments)
    if not (0 < given.seconds <= 600 and 0 < given.round <= given.seconds and 1 <= given.clients <= 256):
        parser.error("up to 600 seconds, rounds no longer than that, and up to 256 clients")
    before = os.getloadavg()[0]
    found = measure(given.seconds, given.round, given.clients)
    print(f"{given.clients} clients, {os.cpu_count()} processors, load average before: {before:.1f}\n")
    for name, measured in found.items():
        print("\n".join(measured.lines(name)))
    figures = figures_of(found)
    print(f"\n{table(figures)}")
    if given.json is not None:
        with atomic_path(given.json) as temporary:
            text = json.dumps({"figures": [figure.as_dict() for figure in figures]}, indent=2)
            temporary.write_text(text + "\n", encoding="utf-8")
    return 1 if given.strict and any(figure.missed for figure in figures) else 0


def measure(seconds: float, round_seconds: float, clients: int) -> dict[str, Measured]:
    """Puts the services under load in turns, each for `seconds` in all."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        modes = {"batched": ({}, clients), "unbatched": (_UNBATCHED, clients), "one after another": (_UNBATCHED, 1)}
        found = {}
        for name, (settings, count) in modes.items():
            service = stack.enter_context(ServiceProcess(folder / name, settings))
            found[name] = Measured(service, asyncio.run(clients_of(service.port, service.tls, service.token, count)))
        asyncio.run(_take_turns(found, seconds, round_seconds))
        return found


def figures_of(found: Mapping[str, Measured]) -> list[Figure]:
    """Batched screening against the same clients' prompts one by one, and against calls one after another."""
    batched, unbatched, alone = (found[name] for name in ("batched", "unbatched", "one after another"))
    throughput, median = batched.throughput, batched.percentile(50)
    return [
        Figure(
            "service",
            "throughput, against unbatched",
            throughput,
            "prompts/s",
            unbatched.throughput,
            wanted_ratio=WANTED_RATIO,
        ),
        Figure("service", "throughput, against one call after another", throughput, "prompts/s", alone.throughput),
        Figure(
            "service",
            "time to an answer, against unbatched",
            median,
            "ms",
            unbatched.percentile(50),
            p99=batched.percentile(99),
        ),
    ]


def short_prompts() -> list[str]:
    """The shipped prompts of all kinds, harmful and harmless ones mixed, none twice."""
    prompts = (shipped_path("datasets") / "sample_prompts.txt").read_text(encoding="utf-8").splitlines()
    for name in ("harmless_uses.csv", "evasions.csv"):
        with (shipped_path("datasets") / name).open(encoding="utf-8", newline="") as file:
            prompts += [row["prompt"] for row in csv.DictReader(file)]
    distinct = list(dict.fromkeys(prompt for prompt in prompts if prompt.strip() and len(prompt) <= 200))
    return [distinct[place] for place in np.random.default_rng(0).permutation(len(distinct))]


async def _take_turns(found: dict[str, Measured], seconds: float, round_seconds: float) -> None:
    prompts = short_prompts()
    for measured in found.values():
        await put_load(measured.clients, prompts, _WARM_UP_SECONDS)
        _hang_up(measured.clients)
    rounds = max(1, round(seconds / round_seconds))
    for number in range(rounds):
        for measured in found.values():
            await _round(measured, prompts, seconds / rounds, first=(number + 1) * 37)


async def _round(measured: Measured, prompts: Sequence[str], seconds: float, first: int) -> None:
    metrics = Client(measured.service.port, measured.service.tls)
    before = await _counted(metrics)
    server, client = measured.service.processor_seconds(), time.process_time()
    measured.load.add(await put_load(measured.clients, prompts, seconds, first=first))
    measured.server += measured.service.processor_seconds() - server
    measured.client += time.process_time() - client
    after = await _counted(metrics)
    measured.passes += after["latentguard_batch_prompts_count"] - before["latentguard_batch_prompts_count"]
    measured.prompts += after["latentguard_batch_prompts_sum"] - before["latentguard_batch_prompts_sum"]
    _hang_up([metrics, *measured.clients])


def _hang_up(clients: Sequence[Client]) -> None:
    """Ends connections that would idle, and be ended by the service, while others have their turn."""
    for client in clients:
        client.close()


async def _counted(metrics: Client) -> dict[str, float]:
    answer = await metrics.request("GET", "/metrics")
    return {name: float(value) for name, value in _METRIC.findall(answer.body.decode())}


if __name__ == "__main__":
    sys.exit(main())
