"""From scores of harmless prompts to a threshold that keeps its promise for further ones; probabilities that hold."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
from disk import files_limited_to
from hypothesis import given
from hypothesis import strategies as st
from models import CONCEPTS, PROMPTS, random_heads, random_mapping
from scipy.stats import beta

from latentguard import ConceptEntry, DataError, LatentGuard, Policy, PolicyError, WeightsError, shipped
from latentguard.calibration import (
    calibrate,
    conformal_rank,
    harmless_prompts,
    rate_bound,
    reliability,
    shown_threshold,
    target_folder,
    threshold_for,
)
from latentguard.evaluation import EvaluationSet, draw, evaluate
from latentguard.weights import WeightsConfig, load_weights, save_weights, with_threshold

SCORES = st.floats(-20, 20, width=32)
RATES = st.sampled_from([0.01, 0.02, 0.05, 0.1, 0.2, 0.5])


@given(st.data(), RATES)
def test_of_exchangeable_prompts_the_left_out_one_is_blocked_at_most_at_the_rate(
    data: st.DataObject, rate: float
) -> None:
    """The guarantee itself, exactly: leave each one of n + 1 scores out in turn and calibrate on the others."""
    least = math.ceil(1 / rate) - 1
    scores = data.draw(st.lists(SCORES, min_size=least + 1, max_size=least + 20))
    all_scores = np.array(scores, dtype=np.float32)
    blocked = [all_scores[i] >= threshold_for(np.delete(all_scores, i), rate) for i in range(len(scores))]
    assert sum(blocked) <= rate * len(scores) + 1e-9


@given(st.lists(SCORES, min_size=99, max_size=150))
def test_the_threshold_is_no_higher_than_it_need_be(scores: list[float]) -> None:
    """Just above a score that was seen: one step lower would block it."""
    all_scores = np.array(scores, dtype=np.float32)
    threshold = np.float32(threshold_for(all_scores, 0.01))
    below = np.nextafter(threshold, np.float32(-np.inf))
    assert (all_scores == below).any()


def test_the_rate_is_used_up_on_fresh_prompts_of_the_same_kind() -> None:
    random = np.random.default_rng(0)
    shares = [(random.normal(size=2_000) >= threshold_for(random.normal(size=1_999), 0.05)).mean() for _ in range(200)]
    assert np.mean(shares) == pytest.approx(0.05, abs=0.002)


def test_prompts_with_equal_scores_are_not_blocked() -> None:
    assert not (np.full(200, 3.5, dtype=np.float32) >= threshold_for(np.full(200, 3.5), 0.01)).any()


def test_a_score_of_double_precision_is_not_rounded_past_the_threshold() -> None:
    scores = np.array([0.1] * 99)
    assert np.float64(threshold_for(scores, 0.01)) > 0.1


@pytest.mark.parametrize(("rate", "needed"), [(0.01, 99), (0.05, 19), (0.5, 1), (0.001, 999)])
def test_too_few_prompts_for_a_rate_are_refused_with_the_number_needed(rate: float, needed: int) -> None:
    threshold_for(np.zeros(needed), rate)
    with pytest.raises(DataError, match=rf"{needed - 1} harmless prompts are too few .* give at least {needed}$"):
        threshold_for(np.zeros(needed - 1), rate)


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, 5.0, math.nan])
def test_a_rate_outside_zero_and_one_is_refused(rate: float) -> None:
    with pytest.raises(DataError, match="between 0 and 1"):
        threshold_for(np.zeros(1_000), rate)


@pytest.mark.parametrize("score", [np.nan, np.inf, -np.inf])
def test_scores_that_are_no_numbers_are_refused(score: float) -> None:
    with pytest.raises(DataError, match="not a finite number"):
        threshold_for(np.array([1.0] * 500 + [score]), 0.01)


def test_the_threshold_serves_as_a_policy() -> None:
    threshold = threshold_for(np.linspace(0, 1, 200), 0.01)
    assert Policy(threshold).threshold == threshold


# --- the guarantee, by simulation

DRAWS: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "normal": lambda random, n: random.normal(size=n),
    "heavy tails": lambda random, n: random.standard_cauchy(size=n),
    "many ties": lambda random, n: random.integers(0, 40, size=n).astype(float),
    # Exchangeable and not independent: all scores of a draw share a shift.
    "a common shift": lambda random, n: random.normal() + random.normal(size=n),
}


@pytest.mark.parametrize("name", DRAWS)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.05, 0.1, 0.25]), st.integers(0, 30))
def test_one_more_exchangeable_prompt_is_blocked_at_most_at_the_rate(
    name: str, seed: int, rate: float, more: int
) -> None:
    random, n, rounds = np.random.default_rng(seed), math.ceil(1 / rate) - 1 + more, 400
    draws = [DRAWS[name](random, n + 1) for _ in range(rounds)]
    blocked = sum(draw[-1] >= threshold_for(draw[:-1], rate) for draw in draws)
    # Five standard deviations: a guarantee that fails by chance once in a million runs.
    assert blocked <= rounds * rate + 5 * math.sqrt(rounds * rate * (1 - rate))


@pytest.mark.parametrize(("n", "rate"), [(99, 0.01), (500, 0.01), (200, 0.05), (30, 0.2)])
def test_the_bound_holds_in_95_of_100_draws_of_prompts(n: int, rate: float) -> None:
    random, rounds = np.random.default_rng(0), 4_000
    bound = rate_bound(n, rate)
    # Of uniform scores, the share above a threshold is known without drawing more.
    kept = sum(1 - threshold_for(random.random(n), rate) <= bound for _ in range(rounds))
    assert kept / rounds == pytest.approx(0.95, abs=0.015)


@given(st.integers(1, 20_000), RATES, st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_the_bound_is_the_quantile_of_the_beta_distribution(n: int, rate: float, confidence: float) -> None:
    if n < math.ceil(1 / rate) - 1:
        with pytest.raises(DataError, match="too few"):
            rate_bound(n, rate, confidence)
        return
    rank = conformal_rank(n, rate)
    assert rate_bound(n, rate, confidence) == pytest.approx(beta.ppf(confidence, n + 1 - rank, rank), rel=1e-6)


def test_the_bound_comes_closer_to_the_rate_with_more_prompts() -> None:
    bounds = [rate_bound(n, 0.01) for n in (99, 1_000, 10_000, 1_000_000)]
    assert bounds == sorted(bounds, reverse=True)
    assert bounds[-1] == pytest.approx(0.01, rel=0.02)


# --- a guard's threshold


def prompt_set(prompts: Iterable[str], unsafe: Iterable[bool] | None = None, name: str = "own.txt") -> EvaluationSet:
    labels = None if unsafe is None else np.array(list(unsafe))
    return EvaluationSet(Path("folder") / name, list(prompts), labels, None, None)


@pytest.mark.parametrize("kind", ["tiny_guard", "headed_guard"])
def test_a_guard_is_calibrated_on_its_own_scores(kind: str, request: pytest.FixtureRequest) -> None:
    guard: LatentGuard = request.getfixturevalue(kind)
    before = guard.policy
    found = calibrate(guard, PROMPTS, 0.2)
    assert guard.policy == before
    assert found.threshold == threshold_for(guard.score(PROMPTS), 0.2)
    guard.policy = Policy(found.threshold)
    assert sum(verdict.blocked for verdict in guard.check_batch(PROMPTS)) == found.blocked
    assert (found.prompts, found.rate, found.bound) == (6, 0.2, rate_bound(6, 0.2))


def test_what_is_promised_names_the_numbers(tiny_guard: LatentGuard) -> None:
    found = calibrate(tiny_guard, PROMPTS, 0.2)
    assert "these 6" in found.guarantee()
    assert "at most 20%" in found.guarantee()
    assert "95% confidence" in found.confidence()
    assert f"at most {100 * found.bound:.3g}%" in found.confidence()


def test_prompts_that_a_concepts_own_threshold_blocks_count_as_blocked(tiny_guard: LatentGuard) -> None:
    plain = tiny_guard.score(PROMPTS)
    tiny_guard.concepts.add("sunset", threshold=-100.0)  # blocks everything
    with pytest.raises(DataError, match="block 6 of 6 prompts already, which is more than a rate"):
        calibrate(tiny_guard, PROMPTS, 0.2)
    tiny_guard.concepts.remove("sunset")
    tiny_guard.concepts.add("sunset", threshold=100.0)  # blocks nothing, and its scores set no threshold
    assert calibrate(tiny_guard, PROMPTS, 0.2).threshold == pytest.approx(threshold_for(plain, 0.2), abs=1e-4)


def test_one_prompt_that_is_blocked_anyway_is_part_of_the_rate(tiny_guard: LatentGuard) -> None:
    tiny_guard.concepts.add("sunset")
    of_sunset = [dict(verdict.scores(None))["sunset"] for verdict in tiny_guard.check_batch(PROMPTS)]
    tiny_guard.concepts.remove("sunset")
    plain = tiny_guard.score(PROMPTS)
    tiny_guard.concepts.add("sunset", threshold=max(of_sunset))
    found = calibrate(tiny_guard, PROMPTS, 0.3)
    rest = np.delete(plain, int(np.argmax(of_sunset)))
    assert found.threshold == pytest.approx(threshold_for(np.append(rest, 1e30), 0.3), abs=1e-4)
    tiny_guard.policy = replace(tiny_guard.policy, threshold=found.threshold)
    assert sum(verdict.blocked for verdict in tiny_guard.check_batch(PROMPTS)) == found.blocked


def test_thresholds_of_categories_are_kept(tiny_guard: LatentGuard) -> None:
    others = [concept for concept in CONCEPTS if concept.category != "violence"]
    without = LatentGuard(tiny_guard.encoder, tiny_guard.mapping, others, tiny_guard.policy)
    tiny_guard.policy = Policy(3.5, categories={"violence": None})
    expected = calibrate(without, PROMPTS, 0.2).threshold
    assert calibrate(tiny_guard, PROMPTS, 0.2).threshold == pytest.approx(expected, abs=1e-4)


def test_a_bank_of_own_thresholds_alone_has_none_to_set(tiny_guard: LatentGuard) -> None:
    concepts = [ConceptEntry("bomb", threshold=3.0), ConceptEntry("gun", threshold=4.0)]
    guard = LatentGuard(tiny_guard.encoder, tiny_guard.mapping, concepts, Policy(3.5))
    with pytest.raises(PolicyError, match="every concept has a threshold of its own"):
        calibrate(guard, PROMPTS, 0.2)


def test_a_prompt_that_repeats_counts_once() -> None:
    found = harmless_prompts(
        [prompt_set(["a cat", "a\u200b cat", "a dog"]), prompt_set(["a dog", "a boat"], name="b.csv")]
    )
    assert found.prompts == ("a cat", "a dog", "a boat")
    assert (found.repeated, found.unsafe, found.files) == (2, 0, ("own.txt", "b.csv"))


def test_prompts_labelled_unsafe_are_left_out() -> None:
    found = harmless_prompts([prompt_set(["a cat", "a bomb", "a dog"], [False, True, False])])
    assert (found.prompts, found.unsafe) == (("a cat", "a dog"), 1)


def test_a_prompt_of_which_nothing_can_be_scored_is_refused_by_row() -> None:
    with pytest.raises(DataError, match=r"own\.txt: row 2: the prompt is empty"):
        harmless_prompts([prompt_set(["a cat", "\u200b"])])


@given(SCORES)
def test_a_threshold_is_shown_so_that_it_can_be_given_back(score: float) -> None:
    threshold = threshold_for(np.array([score] * 99), 0.01)
    assert np.float32(float(shown_threshold(threshold))) == np.float32(threshold)


# --- weights with another threshold

NOTE = {"source": "own.txt", "prompts": 6, "false_positive_rate": 0.2}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Weights with heads, and a file beside them that is none of the project's."""
    mapping, heads = random_mapping(), random_heads()
    config = WeightsConfig(
        "minilm-l6",
        mapping.shape,
        threshold=3.5,
        prompt_head=heads.prompt_head.shape,
        combination=heads.combination,
        training={"source": "random"},
    )
    made = save_weights(tmp_path / "mine", mapping, config, CONCEPTS, "# A card\n", heads)
    (made / "history.txt").write_text("kept")
    return made


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_new_folder_has_the_threshold_the_note_and_the_same_layer(folder: Path, tmp_path: Path) -> None:
    before = content(folder)
    made = with_threshold(folder, tmp_path / "new" / "weights", 5.25, calibration=NOTE, note="By hand.\n")
    old, new = load_weights(folder), load_weights(made)
    assert content(folder) == before
    assert asdict(new.config) == asdict(old.config) | {
        "threshold": 5.25,
        "training": {"source": "random", "calibration": NOTE},
    }
    assert new.concepts == old.concepts
    assert (made / "README.md").read_text() == "# A card\n\n## How the threshold was set\n\nBy hand.\n"
    for name in ("model.safetensors", "lexicon.json", "concepts.json"):
        assert content(made)[name] == before[name]
    assert sorted(content(made)) == ["README.md", "concepts.json", "config.json", "lexicon.json", "model.safetensors"]
    assert [path.name for path in made.parent.iterdir()] == ["weights"]


@pytest.mark.parametrize("concepts", [None, [ConceptEntry("golden retriever", "pets", 2.0)]])
def test_a_folder_is_changed_in_place(folder: Path, concepts: list[ConceptEntry] | None) -> None:
    before, old = content(folder), load_weights(folder)
    with_threshold(folder, folder, 5.25, calibration=NOTE, note="By hand.\n", concepts=concepts)
    now, new = content(folder), load_weights(folder)
    assert new.config.threshold == 5.25
    assert new.concepts == (old.concepts if concepts is None else tuple(concepts))
    changed = {name for name in now if now[name] != before[name]}
    assert changed == {"config.json", "README.md"} | (set() if concepts is None else {"concepts.json"})


def test_the_note_of_an_earlier_threshold_is_replaced(folder: Path) -> None:
    for threshold, note in ((5.0, "First.\n"), (6.0, "Second.\n")):
        with_threshold(folder, folder, threshold, calibration=NOTE, note=note)
    card = (folder / "README.md").read_text()
    assert card == "# A card\n\n## How the threshold was set\n\nSecond.\n"


@pytest.mark.parametrize("in_place", [True, False])
def test_a_full_disk_leaves_everything_as_it_was(folder: Path, tmp_path: Path, in_place: bool) -> None:
    before = content(folder)
    with (
        files_limited_to(len(before["config.json"]) - 100),
        pytest.raises((DataError, WeightsError), match="can't be written"),
    ):
        with_threshold(folder, folder if in_place else tmp_path / "new", 5.25, calibration=NOTE, note="By hand.\n")
    assert content(folder) == before
    assert list(tmp_path.iterdir()) == [folder]


def test_damaged_weights_are_not_passed_on(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(WeightsError, match="damaged"):
        with_threshold(folder, tmp_path / "new", 5.25, calibration=NOTE, note="")
    assert not (tmp_path / "new").exists()


def test_the_weights_go_to_a_new_or_empty_folder(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for output in (tmp_path / "empty", tmp_path / "new"):
        assert target_folder(folder, output) == output
        assert load_weights(with_threshold(folder, output, 5.0, calibration=NOTE, note="")).config.threshold == 5.0
    for output in (folder, folder / "config.json"):
        with pytest.raises(WeightsError, match="is there already"):
            target_folder("minilm-l6", output)
    with pytest.raises(WeightsError, match="can't be written"):
        with_threshold(folder, tmp_path / "new", 6.0, calibration=NOTE, note="")  # filled in the meantime


def test_only_a_folder_of_ones_own_is_changed_in_place(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert target_folder(folder, None) == folder
    for model in (None, "minilm-l6", "owner/name"):
        with pytest.raises(WeightsError, match="no folder to change in place"):
            target_folder(model, None)
    with pytest.raises(WeightsError, match="not a weights folder"):
        target_folder(tmp_path, None)
    installed = tmp_path / "package" / "_shipped" / "weights"
    shutil.copytree(folder, installed / "minilm-l6")
    monkeypatch.setattr(shipped, "_PACKAGE", tmp_path / "package")
    with pytest.raises(WeightsError, match="came with the installation and is not changed"):
        target_folder(installed / "minilm-l6", None)


# --- reliability

PROBABILITIES = st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=2, max_size=200).filter(
    lambda rows: len({label for _, label in rows}) == 2
)


def arrays(rows: list[tuple[float, bool]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([p for p, _ in rows]), np.array([label for _, label in rows])


@given(PROBABILITIES, st.integers(1, 20))
def test_bins_are_a_partition_and_their_error_lies_between_none_and_all(
    rows: list[tuple[float, bool]], bins: int
) -> None:
    found = reliability(*arrays(rows), bins=bins)
    assert len(found.weight) <= bins
    assert found.weight.sum() == pytest.approx(1)
    assert (found.weight * found.observed).sum() == pytest.approx(0.5)
    assert (np.diff(found.predicted) >= -1e-12).all()
    assert -1e-12 <= found.calibration_error <= 1 + 1e-12


@given(PROBABILITIES, st.randoms(use_true_random=False))
def test_the_order_of_prompts_plays_no_part(rows: list[tuple[float, bool]], random: Random) -> None:
    shuffled = list(rows)
    random.shuffle(shuffled)
    there, again = reliability(*arrays(rows)), reliability(*arrays(shuffled))
    np.testing.assert_allclose(there.observed, again.observed)
    assert there.calibration_error == pytest.approx(again.calibration_error)


def test_probabilities_that_come_true_have_no_error_whatever_the_mixture() -> None:
    """Drawn as many of each kind and then thinned: the presumption, and not the file's mixture, is what counts."""
    random = np.random.default_rng(0)
    probabilities = random.random(60_000)
    unsafe = random.random(60_000) < probabilities
    kept = ~unsafe | (random.random(60_000) < 0.1)
    assert reliability(probabilities, unsafe).calibration_error < 0.01
    assert reliability(probabilities[kept], unsafe[kept]).calibration_error < 0.02
    assert reliability(probabilities**3, unsafe).calibration_error > 0.15


def test_the_error_is_the_mean_distance_by_weight() -> None:
    found = reliability(np.array([0.2, 0.2, 0.9, 0.9]), np.array([False, True, True, False]), bins=2)
    assert found.predicted == pytest.approx([0.2, 0.9])
    assert found.observed == pytest.approx([0.5, 0.5])
    assert found.calibration_error == pytest.approx(0.35)


@pytest.mark.parametrize("label", [True, False])
def test_reliability_needs_both_labels(label: bool) -> None:
    with pytest.raises(DataError, match="both unsafe and harmless"):
        reliability(np.array([0.1, 0.9]), np.array([label, label]))


def test_a_guard_with_heads_is_measured_by_its_verdicts_probabilities(
    headed_guard: LatentGuard, tiny_guard: LatentGuard, tmp_path: Path
) -> None:
    data = prompt_set(PROMPTS, [True, False] * 3)
    report, scores = evaluate(headed_guard, data)
    probabilities = np.array([verdict.probability for verdict in headed_guard.check_batch(PROMPTS)])
    expected = reliability(probabilities, np.asarray(data.unsafe)).calibration_error
    assert report.calibration_error == pytest.approx(expected, abs=1e-5)
    assert json.loads(json.dumps(report.as_dict()))["calibration_error"] == report.calibration_error
    assert tmp_path / "reliability_own.png" in draw(headed_guard, [data], [scores], tmp_path)
    assert evaluate(tiny_guard, data)[0].calibration_error is None
    assert evaluate(headed_guard, prompt_set(PROMPTS))[0].calibration_error is None
    assert evaluate(headed_guard, prompt_set(PROMPTS, [True] * 6))[0].calibration_error is None
