"""The GPU benchmark: all of it runs on a processor with small sizes, and it says so where there is no GPU."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import gpu
from benchmarks.gpu import RECIPE_STEPS, Sizes, main
from benchmarks.reference import Tower
from latentguard.shipped import shipped_path
from latentguard.training.trainer import TrainingArguments

TINY = Sizes(
    precisions=("fp32",),
    concepts=5,
    batches=(2, 6),
    rounds=1,
    calls=2,
    tower=Tower(32, 1, 2, 64, 100),
    reference_calls=1,
    warm_up=1,
    trained=12,
    steps=2,
    recipe=TrainingArguments(concepts_per_batch=4, negatives_per_batch=4, mentions=2, held_out=0.2),
)


def rows(printed: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in printed.splitlines() if line.startswith("| ")]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    told = capsys.readouterr()
    assert not told.out
    assert len(told.err.splitlines()) == 1
    assert "--device cpu" in told.err


def test_a_compiler_that_does_not_exist_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--device", "cpu", "--compile", "nonsense"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_it_measures_each_precision_plain_and_compiled(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("transformers", reason="the published pipeline is built with transformers")
    monkeypatch.setattr(gpu, "QUICK", TINY)
    assert main(["--device", "cpu", "--quick", "--compile", "eager"]) == 0
    told = rows(capsys.readouterr().out)
    for kind in ("fp32", "bf16, compiled by eager"):
        screened, trained = (row for row in told if row[0] == kind)
        assert float(screened[1].removesuffix(" ms")) > 0
        assert all(float(cell.removesuffix("/s").replace(",", "")) >= 0 for cell in screened[3:5])
        assert float(screened[6]) < (1e-3 if kind.startswith("fp32") else 0.5)
        assert float(trained[1].removesuffix("/s")) > 0
    assert sum("claim" in row[0] for row in told) == 2


def test_the_steps_of_the_shipped_recipe_are_those_it_took() -> None:
    path = shipped_path("weights") / "minilm-l6" / "training" / "prompt_head" / "metrics.json"
    assert json.loads(path.read_text())["evaluations"][-1]["step"] == RECIPE_STEPS
