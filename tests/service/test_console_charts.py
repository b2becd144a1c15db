"""Where bars, columns and marks of the console's pictures stand."""

from __future__ import annotations

import math

import pytest

from latentguard import LatentGuard, Policy
from latentguard.service.console import charts
from latentguard.service.traffic import Histogram, Seen
from latentguard.verdict import Explanation, TokenContribution


def _explanation(*parts: tuple[str, float]) -> Explanation:
    text, tokens = " ".join(word for word, _ in parts), []
    for word, share in parts:
        start = tokens[-1].end + 1 if tokens else 0
        tokens.append(TokenContribution(word, start, start + len(word), share))
    return Explanation("a concept", text, tuple(tokens), 0.0, 0.0, 0.0)


def test_every_word_is_there_once_and_in_order() -> None:
    found = charts.words(_explanation(("the", 0.1), ("cat", 2.5), ("the", -0.9), ("cat", 0.0)))
    assert [word.text for word in found] == ["the", "cat", "the", "cat"]
    assert [word.share for word in found] == [0.1, 2.5, -0.9, 0.0]


def test_marks_grow_with_the_contribution() -> None:
    shares = (-3.0, -0.5, 0.0, 0.4, 1.0, 1.9, 3.0)
    found = charts.words(_explanation(*((f"w{i}", share) for i, share in enumerate(shares))))
    assert [word.mark for word in found] == ["down2", "down1", "", "up1", "up2", "up3", "up4"]


def test_a_word_outside_the_window_that_decided_has_no_share() -> None:
    explanation = Explanation("a concept", "one two", (TokenContribution("two", 4, 7, 1.0),), 0.0, 0.0, 0.0)
    assert [(word.text, word.share) for word in charts.words(explanation)] == [("one", None), ("two", 1.0)]


def test_bars_share_one_scale_with_their_thresholds(default_guard: LatentGuard) -> None:
    verdict = default_guard.check("a soldier holding a severed head")
    names = default_guard.concepts.names
    thresholds = dict(zip(names, default_guard.policy.thresholds(default_guard.concepts).tolist(), strict=True))
    found = charts.bars(verdict, thresholds)
    assert [bar.name for bar in found] == [name for name, _ in verdict.scores(5)]
    assert all(0 <= bar.length <= 100 and 0 <= bar.mark <= 100 for bar in found)
    assert [bar.length for bar in found] == sorted((bar.length for bar in found), reverse=True)
    assert [bar.over for bar in found] == [bar.score >= thresholds[bar.name] for bar in found]


def test_a_category_that_is_off_has_its_mark_at_the_end(default_guard: LatentGuard) -> None:
    verdict = default_guard.check("a soldier holding a severed head")
    thresholds = dict.fromkeys(default_guard.concepts.names, math.inf)
    assert {bar.mark for bar in charts.bars(verdict, thresholds)} == {100.0}
    assert not any(bar.over for bar in charts.bars(verdict, thresholds))


def test_columns_fill_the_drawing_area() -> None:
    drawn = charts.columns(Histogram((-2.0, 0.0, 2.0), (1, 4), (0, 3)))
    assert drawn is not None
    first, second = drawn.columns
    assert first.x == charts.LEFT
    assert second.x + second.width == pytest.approx(charts.WIDTH - charts.RIGHT - 1)
    assert second.height == charts.TALL == 4 * first.height
    assert second.y == charts.TOP
    assert drawn.place(0.0) == second.x
    assert drawn.place(-100) == charts.LEFT
    assert drawn.place(100) == charts.WIDTH - charts.RIGHT
    assert [score for score, _ in drawn.ticks()] == [-2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0]


@pytest.mark.parametrize("spread", [0.4, 3.0, 12.0, 80.0, 700.0, 100_000.0])
def test_there_are_a_few_round_ticks_whatever_the_scores(spread: float) -> None:
    drawn = charts.columns(Histogram((-spread / 3, spread), (1,), (0,)))
    assert drawn is not None
    assert 2 <= len(drawn.ticks()) <= 10
    assert all(charts.LEFT <= x <= charts.WIDTH - charts.RIGHT for _, x in drawn.ticks())


def test_without_traffic_there_is_no_histogram() -> None:
    assert charts.columns(Histogram((), (), ())) is None


def test_slots_count_every_prompt(tiny_guard: LatentGuard) -> None:
    tiny_guard.policy = Policy(-1e9)
    blocked = tiny_guard.check("a cat")
    tiny_guard.policy = Policy(1e9)
    allowed = tiny_guard.check("a cat")
    times = (1000.0, 1001.0, 1105.0, 1190.0, 1200.0)
    seen = [
        Seen("a cat", verdict, time, "a key", "a policy")
        for time, verdict in zip(times, (blocked, allowed, blocked, allowed, allowed), strict=True)
    ]
    length, slots = charts.slots(seen, 1200.0)
    assert length == 10
    assert sum(slot.prompts for slot in slots) == 5
    assert sum(slot.blocked for slot in slots) == 2
    assert [slot.start for slot in slots] == sorted(slot.start for slot in slots)
    first = next(slot for slot in slots if slot.prompts)
    assert (first.start, first.prompts, first.blocked, first.share) == (1000.0, 2, 1, 0.5)
    assert max(slot.height for slot in slots) == charts.TALL


@pytest.mark.parametrize("age", [5, 200, 4000, 50_000, 1_000_000, 10_000_000])
def test_slots_reach_back_as_far_as_traffic_does_or_a_month(tiny_guard: LatentGuard, age: int) -> None:
    now = 1_700_000_000.0
    verdict = tiny_guard.check("a cat")
    _, slots = charts.slots([Seen("a cat", verdict, now - age, "a key", "a policy")], now)
    assert len(slots) == 30
    assert sum(slot.prompts for slot in slots) == (1 if age < 29 * 86400 else 0)
