"""The engine ray: the rows and the layout of the local one, from a real Ray that each test's run starts for itself."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from cli_runner import command, run
from models import WORDS
from tables import read_rows, write_prompts

from latentguard import DataError
from latentguard.cli import main
from latentguard.screening.folder import screen_folder
from latentguard.screening.manifest import GuardIdentity, Plan
from latentguard.screening.options import ScreeningOptions
from latentguard.screening.recipe import GuardRecipe

pytest.importorskip("ray", reason="the engine ray needs Ray: pip install 'latentguard[ray]'")

WORKER = "ray::MapWorker"


def made_up(count: int, seed: int) -> list[str]:
    chosen = random.Random(seed)
    return [f"{n} " + " ".join(chosen.choices(WORDS, k=chosen.randint(2, 12))) for n in range(count)]


def parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("part-*.parquet"))


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [row | {"score": pytest.approx(row["score"], abs=1e-4)} for path in parts(folder) for row in read_rows(path)]


def workers_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    found = []
    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if " ".join(child.cmdline()).startswith(WORKER):
                    found.append(child)
    return found


def open_to_others(process: subprocess.Popen[str]) -> list[str]:
    """The addresses but the loopback one that a process and its children listen on."""
    found = []
    for each in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            found += [
                connection.laddr.ip
                for connection in each.net_connections("tcp")
                if connection.status == psutil.CONN_LISTEN
            ]
    assert found
    return [address for address in found if address.removeprefix("::ffff:") not in {"127.0.0.1", "::1"}]


def test_the_rows_are_those_of_the_local_engine_even_if_a_worker_is_killed(
    embedded_weights: Path, tmp_path: Path
) -> None:
    inputs = tmp_path / "in"
    inputs.mkdir()
    prompts = made_up(1_000, seed=1), made_up(700, seed=2)
    prompts[0][3] = prompts[1][699] = ""  # which can't be screened
    write_prompts(inputs / "a.csv", prompts[0])
    write_prompts(inputs / "b.csv", prompts[1])
    (inputs / "c.csv").touch()  # without any row
    options = ScreeningOptions(part_rows=50, keep=["id"], unusable="block")
    local = screen_folder(
        GuardRecipe(str(embedded_weights)).guard(device="cpu", threads=1), inputs, tmp_path / "local", options=options
    )
    output = tmp_path / "ray"
    arguments = command(
        *("--file_path", inputs, "--output", output, "--model", embedded_weights, "--keep", "id"),
        *("--part-rows", "50", "--unusable", "block", "--engine", "ray", "--workers", "2"),
    )
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and len(parts(output)) < 2:
            time.sleep(0.02)
        assert process.poll() is None, process.communicate()
        killed = workers_of(process)[0]
        environment = killed.environ()
        killed.send_signal(signal.SIGKILL)
        exposed = open_to_others(process)
        done = len(parts(output))
        printed, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert [
        line for line in errors.splitlines() if "Set ray log level" not in line
    ] == []  # Ray's own, on that it is quiet
    assert done < 35, "all was done before the worker was killed"
    assert printed.splitlines()[-1] == f"{output}: {local}"  # before it, Ray may say that a worker died
    assert exposed == []
    assert environment["RAY_AUTH_MODE"] == "token"
    assert len(environment["RAY_AUTH_TOKEN"]) == 64
    assert environment["RAY_USAGE_STATS_ENABLED"] == "0"
    assert rows_of(output) == rows_of(tmp_path / "local")
    assert [row["prompt"] or "" for row in rows_of(output)] == [*prompts[0], *prompts[1]]
    assert local.by_category["unusable"] == 2
    assert [path.name for path in parts(output)] == [path.name for path in parts(tmp_path / "local")]
    found, expected = (json.loads((folder / "_manifest.json").read_text()) for folder in (output, tmp_path / "local"))
    assert found.pop("run") != expected.pop("run")
    assert found == expected
    # And the local engine has nothing left to do where Ray was.
    assert run(*arguments[2:-4]).stdout == f"{output}: {local}\n"


def test_a_worker_with_another_guard_refuses_to_work(embedded_weights: Path, tmp_path: Path) -> None:
    from latentguard.integrations.ray.workers import Job, PartScreener, PartSource, finished_part

    path = write_prompts(tmp_path / "in.txt", ["sunset"])
    recipe = GuardRecipe(str(embedded_weights))
    plan = Plan.of([path], ScreeningOptions(), GuardIdentity.of(recipe.guard(device="cpu", threads=1)), flags=False)
    job = Job(plan.sources, plan.options, plan.layout, recipe, plan.guard, "cpu", 1, "run")
    for identity, refused in ((plan.guard, False), (replace(plan.guard, version="0.0"), True)):
        [read] = PartSource(replace(job, identity=identity), {}).get_read_tasks(1)
        [part] = read()
        [finished] = PartScreener(replace(job, identity=identity))(part)
        [row] = finished.to_pylist()
        if refused:
            with pytest.raises(DataError, match="a worker has another guard"):
                finished_part(row)
        else:
            assert finished_part(row)[0].summary.prompts == 1


def test_a_folder_of_weights_is_found_from_another_working_folder(
    embedded_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(embedded_weights.parent)
    assert GuardRecipe(embedded_weights.name).elsewhere().model == str(embedded_weights)
    assert GuardRecipe("minilm-l6").elsewhere() == GuardRecipe("minilm-l6")


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (["--output", "out.csv"], "--engine ray writes parts: give it a folder with --output"),
        (["--output", "out", "--device", "cuda"], "leave --device out"),
        (["--output", "out", "--workers", "0"], "the number of workers is 0"),
        (
            ["--output", "out", "--address", "ray://127.0.0.1:1"],
            "through Ray Client, files of this machine can't be read",
        ),
        (["--output", "out", "--address", "127.0.0.1:1"], "127.0.0.1:1 can't be used: [Errno 111] Connection refused"),
        (["--output", "out", "--num-gpus", "-1"], "the share of a GPU for a worker is -1.0"),
    ],
)
def test_what_ray_cannot_do_is_one_line(
    embedded_weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    fault: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_prompts(tmp_path / "in.txt", ["sunset"])
    arguments = ["screen", "--file_path", "in.txt", "--model", str(embedded_weights), "--engine", "ray", *options]
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert fault in printed.err
    assert printed.err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["in.txt"]


@pytest.mark.parametrize("option", ["--address", "--workers", "--num-gpus"])
def test_options_of_ray_are_refused_without_it(tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str) -> None:
    path = write_prompts(tmp_path / "in.txt", ["sunset"])
    assert main(["screen", "--file_path", str(path), "--output", str(tmp_path / "out"), option, "1"]) == 2
    assert capsys.readouterr().err.endswith("--address, --workers and --num-gpus are for --engine ray\n")
