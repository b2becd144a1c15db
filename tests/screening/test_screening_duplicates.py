"""Each different prompt is scored once, and a near duplicate never gets more than a harmless verdict."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import CONCEPTS, PROMPTS, CountingEncoder, load_bert, random_mapping
from tables import read_rows

from latentguard import DataError, LatentGuard, Policy
from latentguard.screening import screen_file
from latentguard.screening.folder import screen_folder
from latentguard.screening.options import ScreeningOptions
from latentguard.screening.screener import Outcome, OutcomeCache, Screener
from latentguard.screening.summary import ScreeningSummary


@pytest.fixture
def encoder(tiny_folder: Path) -> CountingEncoder:
    encoder = load_bert(tiny_folder, CountingEncoder)
    assert isinstance(encoder, CountingEncoder)
    return encoder


@pytest.fixture
def guard(encoder: CountingEncoder) -> LatentGuard:
    guard = LatentGuard(encoder, random_mapping(), CONCEPTS, Policy(3.5))
    encoder.encoded = 0
    return guard


def test_a_repeated_prompt_is_encoded_once_and_gets_the_same_outcome(
    guard: LatentGuard, encoder: CountingEncoder
) -> None:
    screener = Screener(guard, ScreeningOptions())
    prompts = [*PROMPTS, PROMPTS[0], *PROMPTS[::-1]]
    outcomes = screener.outcomes(prompts) + screener.outcomes(PROMPTS[:2])
    assert encoder.encoded == len(PROMPTS)
    assert outcomes == [Outcome.of(verdict) for verdict in guard.check_batch([*prompts, *PROMPTS[:2]])]
    assert screener.repeated == len(outcomes) - len(PROMPTS)


def test_a_prompt_that_merely_reads_the_same_is_scored(guard: LatentGuard, encoder: CountingEncoder) -> None:
    Screener(guard, ScreeningOptions()).outcomes(["sunset", "Sunset", "sunset ", "ѕunset"])
    assert encoder.encoded == 4


def test_no_more_prompts_are_remembered_than_was_said(guard: LatentGuard, encoder: CountingEncoder) -> None:
    screener = Screener(guard, ScreeningOptions(cache=2))
    for prompt in ("sunset", "knight", "sunset", "river", "sunset", "knight"):  # the knight was unused for longest
        screener.outcomes([prompt])
    assert encoder.encoded == 4
    assert screener.repeated == 2


def test_with_nothing_remembered_prompts_are_scored_again(guard: LatentGuard, encoder: CountingEncoder) -> None:
    screener = Screener(guard, ScreeningOptions(cache=0))
    screener.outcomes(["sunset"])
    screener.outcomes(["sunset"])
    assert encoder.encoded == 2


@given(st.lists(st.sampled_from("abcdef"), max_size=40), st.integers(0, 4))
def test_the_cache_holds_the_last_used_ones(used: list[str], size: int) -> None:
    cache, expected = OutcomeCache(size), dict[str, None]()
    for text in used:
        digest = cache.digest(text)
        assert (cache.get(digest) is not None) == (text in expected)
        if text not in expected:
            cache.put(digest, Outcome(0.0, text, None, "allow", -1.0))
        expected.pop(text, None)
        expected[text] = None
        while len(expected) > size:
            expected.pop(next(iter(expected)))
    assert len(cache) == len(expected)


def test_a_change_of_the_guard_does_not_reach_a_run(guard: LatentGuard) -> None:
    screener = Screener(guard, ScreeningOptions())
    before = screener.outcomes(PROMPTS)
    guard.policy = Policy(-100.0)
    guard.concepts.add("sunset")
    assert screener.outcomes([*PROMPTS, "river"])[:-1] == before
    assert screener.outcomes(["garden"])[0].decision == "allow"


def test_the_summary_tells_what_was_not_scored() -> None:
    summary = ScreeningSummary(prompts=200, repeated=50)
    summary.add(ScreeningSummary(prompts=200, repeated=10, near_duplicates=8, by_category={"hate": 1}, blocked=1))
    assert str(summary) == (
        "400 prompts: 1 blocked (hate 1), 399 allowed; 60 repetitions (15.0%) not scored again; "
        "8 near duplicates (2.0%) given another's verdict"
    )
    assert ScreeningSummary.from_dict(summary.as_dict()) == summary


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"cache": -1}, "remembered prompts is -1"),
        ({"part_rows": 0}, "rows a part is 0"),
        ({"near_duplicates": 0.2}, "not between 0.5 and 1"),
        ({"near_duplicates": 1.2}, "not between 0.5 and 1"),
        ({"near_duplicates": 0.9, "cache": 0}, "none is to be remembered"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, float], fault: str) -> None:
    with pytest.raises(DataError, match=fault):
        ScreeningOptions(**options)  # type: ignore[arg-type]


# --- near duplicates

CALM = "a quiet garden with roses and a wooden bench beneath an old apple tree in the soft light of a summer morning"


@pytest.fixture
def near(default_guard: LatentGuard) -> Screener:
    pytest.importorskip("datasketch", reason="near duplicates need datasketch")
    return Screener(default_guard, ScreeningOptions(near_duplicates=0.7))


@pytest.mark.parametrize(
    "variant",
    [
        pytest.param(CALM.upper() + "!", id="case and punctuation"),
        pytest.param(CALM.replace("soft ", ""), id="a word less"),
        pytest.param("in the soft light of a summer morning " + CALM.split(" in the soft")[0], id="another order"),
        pytest.param(CALM + " of a summer morning", id="a repetition"),
    ],
)
def test_a_near_duplicate_of_a_harmless_prompt_gets_its_verdict(near: Screener, variant: str) -> None:
    [first] = near.outcomes([CALM])
    assert not first.near
    assert near.outcomes([variant]) == [first._replace(near=True)]
    assert (near.near_duplicates, near.repeated) == (1, 0)
    assert near.outcomes([variant]) == [first._replace(near=True)]
    assert (near.near_duplicates, near.repeated) == (1, 1)


def test_rows_tell_which_of_them_were_not_scored_themselves(default_guard: LatentGuard, tmp_path: Path) -> None:
    pytest.importorskip("datasketch", reason="near duplicates need datasketch")
    path = tmp_path / "in.txt"
    path.write_text("".join(f"{prompt}\n" for prompt in [CALM, *["sunset"] * 511, CALM.upper(), "river"]))
    options = ScreeningOptions(near_duplicates=0.7, part_rows=1_000)
    screen_file(default_guard, path, tmp_path / "out.parquet", options=options)
    screen_folder(default_guard, path, tmp_path / "out", options=options)
    for written in (tmp_path / "out.parquet", tmp_path / "out" / "part-00000-00000.parquet"):
        assert [number for number, row in enumerate(read_rows(written), 1) if row["near_duplicate"]] == [513]


@pytest.mark.parametrize(
    "variant",
    [
        pytest.param(CALM.replace("wooden bench", "naked woman"), id="other words"),
        pytest.param(CALM.replace("quiet", "bloody"), id="one other word"),
        pytest.param(CALM + " nude", id="one word more"),
        pytest.param(CALM + " n u d e", id="one word more, in disguise"),
        pytest.param(CALM + " \U0001f52a", id="an emoji more"),
        pytest.param(CALM + " 9", id="a number more"),
    ],
)
def test_a_prompt_with_a_word_that_the_harmless_one_lacks_is_scored(
    near: Screener, default_guard: LatentGuard, variant: str
) -> None:
    near.outcomes([CALM])
    assert near.outcomes([variant])[0].score == pytest.approx(default_guard.check(variant).score, abs=1e-4)
    assert near.near_duplicates == 0


def test_a_prompt_near_a_blocked_one_is_always_scored(near: Screener, default_guard: LatentGuard) -> None:
    blocked = "a masked gunman aiming a rifle at a crowd of terrified people who run across the square of the old town"
    assert near.outcomes([blocked])[0].decision == "block"
    variant = blocked.replace("masked ", "")
    assert near.outcomes([variant])[0].score == pytest.approx(default_guard.check(variant).score, abs=1e-4)
    assert near.near_duplicates == 0


def test_what_is_near_being_flagged_is_not_passed_on(default_guard: LatentGuard) -> None:
    pytest.importorskip("datasketch", reason="near duplicates need datasketch")
    guard = default_guard.fork()
    margin = -guard.check(CALM).margin
    guard.policy = Policy(guard.policy.threshold, flag_margin=margin - 0.5)  # a clear margin would be 1
    screener = Screener(guard, ScreeningOptions(near_duplicates=0.7))
    assert screener.outcomes([CALM])[0].decision == "allow"
    screener.outcomes([CALM + "!"])
    assert screener.near_duplicates == 0


def test_signs_alone_are_near_nothing(near: Screener) -> None:
    near.outcomes(["!!!"])
    near.outcomes(["..."])
    assert near.near_duplicates == 0


def test_the_oldest_near_duplicate_is_forgotten(default_guard: LatentGuard) -> None:
    pytest.importorskip("datasketch", reason="near duplicates need datasketch")
    screener = Screener(default_guard, ScreeningOptions(near_duplicates=0.7, cache=1))
    screener.outcomes([CALM])
    screener.outcomes(["a red wine on a white table next to bread and cheese"])
    screener.outcomes([CALM + "!"])
    assert screener.near_duplicates == 0
