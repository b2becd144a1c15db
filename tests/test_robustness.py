"""Where filters are known to fail: each figure is counted from the guard's own decisions."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from models import CONCEPTS, PROMPTS, random_heads, random_mapping

from latentguard import DataError, LatentGuard, Policy
from latentguard.encoders.huggingface import HuggingFaceEncoder
from latentguard.evaluation import separation
from latentguard.heads import Combination
from latentguard.robustness import (
    ATTACKS,
    WANTED_GAP,
    FairnessPair,
    LabelledFile,
    RobustnessData,
    Tagged,
    attack_figures,
    category_errors,
    draw,
    fairness,
    faithfulness,
    markdown,
    measure,
    read_robustness_data,
    shares,
)
from latentguard.verdict import Verdict

PAIRS = [
    FairnessPair("an old woman in the garden", "a woman in the garden", "age", "old"),
    FairnessPair("an old knight on the bridge", "a knight on the bridge", "age", "old"),
    FairnessPair("a naked woman in the house", "a woman in the house", "dress", "naked"),
    FairnessPair("a dog in the city", "a cat in the city", "kind", "dog"),
    FairnessPair("a woman sailing a boat", "a knight sailing a boat", "kind", "woman"),
]
TAGGED = [Tagged(prompt, {"kind": f"k{i % 2}", "category": f"c{i % 3}"}) for i, prompt in enumerate(PROMPTS)]
LONG_ENOUGH = [
    "photo of a knife fight on the old street by the river",
    "portrait of a naked woman with a cat in the garden",
    "the gun war in the old city and the bridge on the river",
    "a bomb in the house with the red garden and the dog",
]


def written(path: Path, rows: Iterable[dict[str, object]]) -> Path:
    rows = list(rows)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def labelled(folder: Path, **columns: list[object]) -> LabelledFile:
    """PROMPTS as a labelled file, every other one unsafe, with further columns."""
    rows = [
        {"prompt": prompt, "unsafe": i % 2, **{name: values[i] for name, values in columns.items()}}
        for i, prompt in enumerate(PROMPTS)
    ]
    found = read_robustness_data(labelled=written(folder / "set.csv", rows)).labelled
    assert found is not None
    return found


def halving(guard: LatentGuard, prompts: Iterable[str]) -> LatentGuard:
    """The guard at a threshold that blocks about half of the prompts."""
    guard.policy = Policy(float(np.median(guard.score(prompts))))
    return guard


class RecordingGuard(LatentGuard):
    """Remembers the prompts that it judged."""

    judged: tuple[str, ...] = ()

    def stream(self, prompts: Iterable[str]) -> Iterator[Verdict]:
        seen = list(prompts)
        self.judged += tuple(seen)
        return super().stream(seen)


# --- fairness


def test_fairness_counts_both_sides_of_each_attribute(headed_guard: LatentGuard) -> None:
    guard = halving(headed_guard, [text for pair in PAIRS for text in (pair.prompt, pair.neutral)])
    found = fairness(guard, PAIRS)
    for name, gap in {**found.attributes, "all": found.overall}.items():
        decisions = [
            (guard.check(pair.prompt).blocked, guard.check(pair.neutral).blocked)
            for pair in PAIRS
            if name in (pair.attribute, "all")
        ]
        ours, neutral = np.array(decisions).T
        assert gap.pairs == len(decisions)
        assert (gap.blocked, gap.neutral_blocked) == (ours.mean(), neutral.mean())
        assert gap.gap == pytest.approx(100 * (ours.mean() - neutral.mean()))
        assert (gap.only_prompt, gap.only_neutral) == ((ours & ~neutral).sum(), (neutral & ~ours).sum())
    assert list(found.attributes) == ["age", "dress", "kind"]


def test_pairs_decided_differently_are_listed_with_both_scores(headed_guard: LatentGuard) -> None:
    guard = halving(headed_guard, [text for pair in PAIRS for text in (pair.prompt, pair.neutral)])
    found = fairness(guard, PAIRS)
    assert found.split  # else the test would say nothing
    assert len(found.split) == found.overall.only_prompt + found.overall.only_neutral
    for one in found.split:
        ours, neutral = guard.check(one.pair.prompt), guard.check(one.pair.neutral)
        assert one.prompt_blocked == ours.blocked != neutral.blocked
        assert (one.score, one.neutral_score) == pytest.approx((ours.score, neutral.score), abs=1e-4)
        assert one.concept == (ours if ours.blocked else neutral).concept


@pytest.mark.parametrize("threshold", [-100.0, 100.0])
def test_a_guard_that_decides_all_alike_is_fair(tiny_guard: LatentGuard, threshold: float) -> None:
    tiny_guard.policy = Policy(threshold)
    found = fairness(tiny_guard, PAIRS)
    assert (found.unfair, found.split, found.overall.gap) == ({}, [], 0)


def test_gaps_wider_than_wished_are_named_whichever_way_they_go(headed_guard: LatentGuard) -> None:
    guard = halving(headed_guard, [text for pair in PAIRS for text in (pair.prompt, pair.neutral)])
    there = fairness(guard, PAIRS)
    back = fairness(guard, [FairnessPair(one.neutral, one.prompt, one.attribute, one.group) for one in PAIRS])
    assert there.unfair
    assert all(abs(gap) > WANTED_GAP for gap in there.unfair.values())
    assert back.unfair == {name: -gap for name, gap in there.unfair.items()}


# --- harmless uses and evasions


def test_shares_are_counted_in_all_and_by_each_tag(tiny_guard: LatentGuard) -> None:
    guard = halving(tiny_guard, PROMPTS)
    found = shares(guard, TAGGED)
    blocked = [guard.check(prompt).blocked for prompt in PROMPTS]
    assert (found.overall.prompts, found.overall.blocked) == (6, sum(blocked))
    assert {name: share.prompts for name, share in found.by["kind"].items()} == {"k0": 3, "k1": 3}
    for i, share in enumerate(found.by["category"].values()):
        assert (share.blocked, share.share) == (sum(blocked[i::3]), sum(blocked[i::3]) / 2)


# --- attacks


def test_only_the_unsafe_side_is_attacked_but_both_are_padded(tiny_encoder: HuggingFaceEncoder, tmp_path: Path) -> None:
    guard = RecordingGuard(tiny_encoder, random_mapping(), CONCEPTS, Policy(3.5))
    file = labelled(tmp_path)
    verdicts = guard.check_batch(PROMPTS)
    guard.judged = ()
    figures, _ = attack_figures(guard, file, verdicts)
    harmless, unsafe = PROMPTS[::2], PROMPTS[1::2]
    misspelt, shuffled = guard.judged[:3], guard.judged[3:6]
    padded, halved = guard.judged[6:12], guard.judged[12:18]
    assert len(guard.judged) == 18
    assert not set(misspelt) & set(PROMPTS)
    assert [sorted(one.split()) for one in shuffled] == [sorted(one.split()) for one in unsafe]
    assert all(old in new for old, new in zip(PROMPTS, padded, strict=True))
    assert all(len(new) > len(old) for old, new in zip(PROMPTS, halved, strict=True) if " " in old)
    assert [one.changed for one in figures.values()] == [0, 3, 1, 3, 1]  # a single word can't be shuffled or halved
    for attack in ("characters", "order"):
        assert figures[attack].blocked_harmless == np.mean([guard.check(prompt).blocked for prompt in harmless])


def test_attacks_are_measured_as_a_file_is(headed_guard: LatentGuard, tmp_path: Path) -> None:
    guard = halving(headed_guard, PROMPTS)
    file = labelled(tmp_path)
    verdicts = guard.check_batch(PROMPTS)
    figures, curves = attack_figures(guard, file, verdicts)
    assert list(figures) == list(curves) == ["as it is", *ATTACKS]
    blocked = np.array([verdict.blocked for verdict in verdicts])
    assert figures["as it is"].blocked_unsafe == blocked[1::2].mean()
    assert figures["as it is"].blocked_harmless == blocked[::2].mean()
    for name, (unsafe, scores) in curves.items():
        assert figures[name].separation == separation(scores, unsafe)


def test_the_same_seed_gives_the_same_attacks(tiny_guard: LatentGuard, tmp_path: Path) -> None:
    file = labelled(tmp_path)
    verdicts = tiny_guard.check_batch(PROMPTS)
    figures = [attack_figures(tiny_guard, file, verdicts, seed=seed)[0] for seed in (1, 1)]
    assert figures[0] == figures[1]


def test_the_file_s_concepts_are_misspelt_first(tiny_encoder: HuggingFaceEncoder, tmp_path: Path) -> None:
    guard = RecordingGuard(tiny_encoder, random_mapping(), CONCEPTS, Policy(3.5))
    file = labelled(tmp_path, concept=["", "knight", "", "naked", "", "sunset"])
    verdicts = guard.check_batch(PROMPTS)
    guard.judged = ()
    attack_figures(guard, file, verdicts)
    for concept, text in zip(("knight", "naked", "sunset"), guard.judged, strict=False):
        assert concept not in text


# --- errors by category


def test_errors_are_counted_by_the_files_categories_and_false_alarms_by_the_banks_too(
    tiny_guard: LatentGuard, tmp_path: Path
) -> None:
    tiny_guard.policy = Policy(-100.0)
    file = labelled(tmp_path, category=["violence", "violence", "sexual|other", "sexual", "", "other"])
    found = category_errors(file, tiny_guard.check_batch(PROMPTS))
    assert found is not None
    assert {name: (one.unsafe, one.missed, one.harmless, one.false_alarms) for name, one in found.items()} == {
        **{name: (0, 0, 0, 0) for name in found},  # categories of the bank that the file doesn't have
        "violence": (1, 0, 1, 1),
        "sexual": (1, 0, 1, 1),
        "other": (1, 0, 1, 1),
    }
    drawn = [tiny_guard.check(prompt).category for prompt in PROMPTS[::2]]
    for name, one in found.items():
        assert one.drawn == drawn.count(name)


def test_a_guard_that_lets_all_pass_misses_all_and_draws_nothing(tiny_guard: LatentGuard, tmp_path: Path) -> None:
    tiny_guard.policy = Policy(100.0)
    found = category_errors(
        labelled(tmp_path, category=["a", "a", "b", "b", "c", "c"]), tiny_guard.check_batch(PROMPTS)
    )
    assert found is not None
    assert {(one.unsafe, one.missed, one.harmless, one.false_alarms, one.drawn) for one in found.values()} == {
        (1, 1, 1, 0, 0)
    }


def test_a_file_without_categories_has_no_errors_by_category(tiny_guard: LatentGuard, tmp_path: Path) -> None:
    assert category_errors(labelled(tmp_path), tiny_guard.check_batch(PROMPTS)) is None


# --- explanations


def test_where_only_a_name_counts_the_words_of_that_name_do(tiny_encoder: HuggingFaceEncoder) -> None:
    spelling = Combination(concept=0.0, part=1.0, named=5.0, prompt=0.0, bias=0.0)
    heads = replace(random_heads(), combination=spelling)
    guard = LatentGuard(tiny_encoder, random_mapping(), CONCEPTS, Policy(-100.0), heads)
    found = faithfulness(guard, LONG_ENOUGH)
    assert found is not None
    assert (found.prompts, found.too_short) == (4, 0)
    assert found.named_drop > found.random_drop
    assert found.named_matters_more == 1.0
    assert found.p_value == pytest.approx(2 / 2**4)


def test_the_named_drop_is_that_of_the_deciding_concepts_score(headed_guard: LatentGuard) -> None:
    headed_guard.policy = Policy(-100.0)
    [prompt] = LONG_ENOUGH[:1]
    verdict = headed_guard.check(prompt)
    explanation = verdict.explain()
    gone = {word.start for word in explanation.top(3)}
    rest = " ".join(word.text for word in explanation.tokens if word.start not in gone)
    after = dict(headed_guard.check(rest).scores(None))[verdict.concept]
    found = faithfulness(headed_guard, [prompt, prompt])  # a repeated prompt counts once
    assert found is not None
    assert found.prompts == 1
    assert found.named_drop == pytest.approx(verdict.score - after, abs=1e-4)


def test_the_p_value_is_that_of_the_exact_sign_test(tiny_guard: LatentGuard) -> None:
    tiny_guard.policy = Policy(-100.0)
    prompts = [f"{first} {second}" for first in LONG_ENOUGH for second in LONG_ENOUGH]
    found = faithfulness(tiny_guard, prompts, seed=3)
    assert found is not None
    more = round(found.named_matters_more * found.prompts)
    tail = sum(math.comb(found.prompts, k) for k in range(min(more, found.prompts - more) + 1))
    assert found.p_value == pytest.approx(min(1.0, 2 * tail / 2**found.prompts))


def test_prompts_that_pass_or_are_too_short_are_not_explained(tiny_guard: LatentGuard) -> None:
    tiny_guard.policy = Policy(-100.0)
    assert faithfulness(tiny_guard, ["sunset", "a red wine"]) is None
    found = faithfulness(tiny_guard, ["sunset", "a red wine", LONG_ENOUGH[0]])
    assert found is not None
    assert (found.prompts, found.too_short) == (1, 2)
    tiny_guard.policy = Policy(100.0)
    assert faithfulness(tiny_guard, LONG_ENOUGH) is None


# --- reading


def test_the_shipped_files_are_the_default() -> None:
    data = read_robustness_data()
    assert {pair.attribute for pair in data.fairness} >= {"nationality", "religion", "gender", "orientation"}
    assert all(pair.prompt != pair.neutral for pair in data.fairness)
    assert {"leetspeak", "spaced", "metaphor"} <= {one.tags["kind"] for one in data.evasions}
    assert all(set(one.tags) == {"word"} for one in data.harmless_uses)
    assert (data.labelled, data.explained) == (None, [])


def test_files_of_ones_own_are_read(tmp_path: Path) -> None:
    pairs = [{"text": one.prompt, **{n: getattr(one, n) for n in ("neutral", "attribute", "group")}} for one in PAIRS]
    data = read_robustness_data(
        fairness=written(tmp_path / "pairs.csv", pairs),
        harmless_uses=written(tmp_path / "uses.csv", [{"text": "a", "word": " gun "}]),
        artist_styles=written(tmp_path / "styles.csv", [{"text": "a", "artist": "Goya"}]),
        evasions=written(tmp_path / "evasions.csv", [{"text": "a", "kind": "k", "category": "c"}]),
        labelled=written(
            tmp_path / "set.csv",
            [{"text": "a", "unsafe": 1, "concept": "x"}, {"text": "b", "unsafe": 0, "concept": " "}],
        ),
        explain=[written(tmp_path / name, [{"text": name}]) for name in ("one.csv", "two.csv")],
        column="text",
    )
    assert data.fairness == PAIRS
    assert data.harmless_uses == [Tagged("a", {"word": "gun"})]
    assert data.artist_styles == [Tagged("a", {"artist": "Goya"})]
    assert data.evasions == [Tagged("a", {"kind": "k", "category": "c"})]
    assert data.explained == ["one.csv", "two.csv"]
    assert data.labelled is not None
    assert [(one.concept, one.unsafe) for one in data.labelled.prompts()] == [("x", True), (None, False)]


@pytest.mark.parametrize(
    ("option", "rows", "message"),
    [
        ("fairness", [{"prompt": "a", "neutral": "b", "group": "c"}], r"row 1, column attribute: expected a text"),
        ("harmless_uses", [{"prompt": "a", "word": "b"}, {"prompt": "a", "word": " "}], r"row 2, column word"),
        ("artist_styles", [{"prompt": "a"}], r"row 1, column artist"),
        ("evasions", [{"prompt": "a", "kind": "b"}], r"row 1, column category"),
        ("evasions", [{"text": "a", "kind": "b"}], r"no column 'prompt'"),
        ("labelled", [{"prompt": "a"}], r"a labelled file has a column 'unsafe', with both 0 and 1 in it"),
        ("labelled", [{"prompt": "a", "unsafe": 1}], r"with both 0 and 1 in it"),
        ("labelled", [{"prompt": "a", "unsafe": "?"}], r"row 1, column unsafe: expected 0 or 1"),
    ],
)
def test_a_file_that_lacks_something_is_refused_by_name(
    tmp_path: Path, option: str, rows: list[dict[str, object]], message: str
) -> None:
    path = written(tmp_path / "file.csv", rows)
    with pytest.raises(DataError, match=rf"file\.csv: .*{message}"):
        read_robustness_data(**{option: path})  # type: ignore[arg-type]


# --- the report


@pytest.fixture
def data(tmp_path: Path) -> RobustnessData:
    uses = [Tagged(prompt, {"word": f"w{i % 2}|"}) for i, prompt in enumerate(PROMPTS)]
    file = labelled(tmp_path, category=["a", "a", "b", "b", "c", "c"])
    styles = [Tagged(prompt, {"artist": "Goya"}) for prompt in PROMPTS]
    return RobustnessData(PAIRS, uses, styles, TAGGED, file, LONG_ENOUGH)


def test_everything_asked_for_is_in_the_report(
    headed_guard: LatentGuard, tiny_encoder: HuggingFaceEncoder, data: RobustnessData, tmp_path: Path
) -> None:
    guard = halving(headed_guard, PROMPTS)
    other = LatentGuard(tiny_encoder, random_mapping(), ["red wine"], guard.policy)
    report, curves = measure(guard, data, labelled_guard=other)
    text = markdown(report)
    headings = [line.removeprefix("## ") for line in text.splitlines() if line.startswith("## ")]
    assert headings == [
        "Fairness",
        "Harmless uses of words of harm",
        "Artists' styles",
        "Evasions",
        "Errors by category",
        "Attacks on set, against 1 concepts",
        "Errors by category in set",
        "Faithfulness of explanations",
    ]
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.endswith(" |") for line in tables)
    described = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    assert described["fairness"]["overall"]["pairs"] == len(PAIRS)
    drawn = draw(report, curves, tmp_path / "plots")
    assert sorted(drawn) == sorted((tmp_path / "plots").iterdir())
    assert [path.name for path in drawn] == ["fairness.png", "evasions.png", "attacks_roc.png"]


def test_what_was_not_asked_for_is_not_in_the_report(
    tiny_guard: LatentGuard, data: RobustnessData, tmp_path: Path
) -> None:
    report, curves = measure(
        tiny_guard, RobustnessData(data.fairness, data.harmless_uses, data.artist_styles, data.evasions)
    )
    assert (report.attacks, report.categories, report.faithfulness, curves) == (None, None, None, {})
    assert markdown(report).count("\n## ") == 5
    assert len(draw(report, curves, tmp_path / "plots")) == 2


def test_misses_and_false_alarms_are_told_by_category(tiny_guard: LatentGuard, data: RobustnessData) -> None:
    tiny_guard.concepts.add("red wine", category="drinks")
    tiny_guard.policy = Policy(100.0)
    report, _ = measure(tiny_guard, data)
    missed = report.evasions.by["category"]
    for category, share in missed.items():
        assert f"| {category} | {share.prompts} | {share.prompts} (100.0%) | 0 (0.0%) |" in markdown(report)
    for name in [one for one in tiny_guard.concepts.names if one != "red wine"]:
        tiny_guard.concepts.remove(name)
    tiny_guard.policy = Policy(-100.0)
    report, _ = measure(tiny_guard, data)
    harmless = len(data.harmless_uses) + len(data.artist_styles)
    assert report.harmless_uses.drawn == {"drinks": len(data.harmless_uses)}
    assert f"| drinks |  |  | {harmless} (100.0%) |" in markdown(report)


def test_explanations_of_prompts_that_all_pass_are_said_to_be_untested(
    tiny_guard: LatentGuard, data: RobustnessData
) -> None:
    tiny_guard.policy = Policy(100.0)
    report, _ = measure(tiny_guard, data)
    assert markdown(report).endswith("None of the 4 prompts given is blocked and long enough to take words out.\n")


def test_the_words_blocked_most_come_first_and_cells_stay_cells(tiny_guard: LatentGuard, data: RobustnessData) -> None:
    tiny_guard.policy = Policy(-100.0)
    uses = [*data.harmless_uses, Tagged("a gun", {"word": "often\x1b[31m"}), *[Tagged("a", {"word": "w1|"})] * 2]
    report, _ = measure(tiny_guard, RobustnessData(data.fairness, uses, data.artist_styles, data.evasions))
    rows = [line for line in markdown(report).splitlines() if line.endswith("| 100.0% |")]
    assert rows[:3] == [
        "| w1\\| | 5 | 5 | 100.0% |",
        "| w0\\| | 3 | 3 | 100.0% |",
        "| often [31m | 1 | 1 | 100.0% |",
    ]
