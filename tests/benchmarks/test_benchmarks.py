"""The benchmarks run, measure what they say they do, and compare it with what is wanted."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.__main__ import BENCHMARKS, main
from benchmarks.made_up import LAYERS, concept_names, guard_of, prompt_of, prompts
from benchmarks.reference import PublishedPipeline, Tower, published_scores
from benchmarks.report import Figure, table
from benchmarks.settings import Settings
from benchmarks.timing import Call, interleaved
from latentguard.encoders import load_encoder
from latentguard.mapping import MappingLayer, MappingShape

TINY = Settings(
    concepts=(3, 7), rounds=1, calls=2, prompts=5, steps=2, tower=Tower(32, 1, 2, 64, 100), denoiser=(8, 16)
)
FIGURE = Figure("check", "20 tokens", 2.0, "ms", 800.0, 3.0)


@pytest.mark.parametrize("name", [name for name in BENCHMARKS if name != "cost"])  # that: see test_bench_cost
def test_every_benchmark_gives_figures_with_a_reference(name: str) -> None:
    pytest.importorskip("diffusers", reason="pipelines are diffusers', and the published one transformers'")
    figures = BENCHMARKS[name](TINY)
    assert figures
    for figure in figures:
        assert figure.benchmark == name
        assert figure.value > 0
        assert math.isfinite(figure.ratio)


def test_the_reference_is_the_layers_plain_formula() -> None:
    torch.manual_seed(0)
    mapping = MappingLayer(MappingShape(24)).eval()
    concepts, z = torch.randn(700, 24), torch.randn(9, 24)
    with torch.no_grad():
        plain = mapping(concepts, z[None], torch.ones(1, 9, dtype=torch.bool))[0]
    torch.testing.assert_close(published_scores(mapping, concepts, z), plain, atol=1e-4, rtol=0)


def test_a_score_that_differs_from_the_reference_stops_the_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.scoring.published_scores", lambda *given: published_scores(*given) + 1e-3)
    with pytest.raises(ArithmeticError, match="differ from the reference"):
        BENCHMARKS["scoring"](TINY)


def test_the_published_pipeline_scores_a_prompt_by_its_nearest_concept() -> None:
    pytest.importorskip("transformers", reason="the published pipeline is built with transformers")
    pipeline = PublishedPipeline(TINY.tower)
    assert abs(pipeline.checker(5)()) <= 1 / 0.07 + 1e-3
    assert pipeline.embed_concept().shape == (1, 32)


def test_calls_take_turns_and_the_first_round_does_not_count() -> None:
    order: list[str] = []
    calls = {
        "a": Call(lambda: order.append("a")),
        "b": Call(lambda: order.append("b"), repeats=2, after=lambda: order.append(".")),
    }
    times = interleaved(calls, rounds=2)
    assert "".join(order) == "ab.b.b." * 3
    assert [len(times[name].seconds) for name in "ab"] == [2, 4]


def test_less_time_and_more_prompts_a_second_are_better() -> None:
    assert FIGURE.ratio == 400
    assert replace(FIGURE, unit="prompts/s").ratio == 1 / 400


@pytest.mark.parametrize(
    ("wanted", "missed"),
    [({}, False), ({"wanted_ratio": 400}, False), ({"wanted_ratio": 401}, True), ({"wanted_value": 1.9}, True)],
)
def test_a_figure_is_missed_when_it_falls_short_of_what_is_wanted(wanted: dict[str, float], missed: bool) -> None:
    assert replace(FIGURE, **wanted).missed is missed


def test_the_table_marks_what_is_missed() -> None:
    lines = table([replace(FIGURE, wanted_ratio=500), replace(FIGURE, wanted_ratio=100), FIGURE]).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert "400×" in lines[2]
    assert ["missed" in line for line in lines[2:]] == [True, False, False]
    assert ["reached" in line for line in lines[2:]] == [False, True, False]


@pytest.mark.parametrize(("arguments", "status"), [([], 0), (["--strict"], 1)])
def test_a_missed_figure_fails_only_when_strict(
    arguments: list[str], status: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(BENCHMARKS, "scoring", lambda settings: [replace(FIGURE, wanted_ratio=500)])
    threads = torch.get_num_threads()
    try:
        assert main(["--only", "scoring", "--json", str(tmp_path / "figures.json"), *arguments]) == status
    finally:
        torch.set_num_threads(threads)
    written = json.loads((tmp_path / "figures.json").read_text())["figures"]
    assert [(figure["what"], figure["ratio"], figure["missed"]) for figure in written] == [("20 tokens", 400, True)]


@pytest.mark.parametrize("tokens", [20, 77])
def test_a_prompt_has_the_length_asked_for(tokens: int) -> None:
    encoder = load_encoder(device="cpu", layers=LAYERS)
    windows = encoder.windows(prompt_of(encoder, tokens))
    assert len({span for window in windows for span in window.offsets if span != (0, 0)}) == tokens - 2


def test_made_up_concepts_are_all_different() -> None:
    assert len(set(concept_names(5000))) == 5000


def test_made_up_prompts_are_the_same_every_time_and_of_many_lengths() -> None:
    made = prompts(200)
    assert made == prompts(200)
    assert len({len(prompt.split()) for prompt in made}) > 10


def test_a_made_up_guard_scores() -> None:
    guard = guard_of(load_encoder(device="cpu", layers=LAYERS), 4)
    assert len(guard.check("a red fox").scores(None)) == 4
