"""The pipeline: the file it writes, its journal after a kill, its report, and parallel requests."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from chat_server import ChatServer, Reply, chat_server, fails, says

from latentguard.errors import DataError
from latentguard.records import ConceptEntry
from latentguard.synthesis.attack import Replacement
from latentguard.synthesis.backends import Backend, BackendError, Draft, GrammarBackend, LanguageModelBackend
from latentguard.synthesis.endpoint import Endpoint, EndpointSettings
from latentguard.synthesis.generate import SynthesisReport, SynthesisSettings, synthesize
from latentguard.synthesis.grammar import Grammar
from latentguard.synthesis.journal import Journal
from latentguard.synthesis.tally import Tally
from latentguard.training.pairs import read_pairs

CONCEPTS = [
    ConceptEntry("knife attack", "violence"),
    ConceptEntry("gore", "shocking"),
    ConceptEntry("thinspiration"),
    ConceptEntry("gun smuggling", "illegal activity"),
]
SMALL = SynthesisSettings(per_concept=6, synonyms=2)


class FixedSearch:
    """Gives the same replacement for every concept, without an encoder."""

    encoder = "fixed"

    def __init__(self) -> None:
        self.contexts: dict[str, Sequence[str]] = {}

    def replacements(self, concept: str, contexts: Sequence[str] | None = None, count: int = 3) -> list[Replacement]:
        self.contexts[concept] = contexts or ()
        return [Replacement("quux", 0.5)][:count]


class Stopping(GrammarBackend):
    """Fails, as a kill would, at the concept of that number."""

    def __init__(self, grammar: Grammar, at: int) -> None:
        super().__init__(grammar)
        self.left = at

    def pairs(self, concept: ConceptEntry, count: int, seed: int, tally: Tally) -> list[Draft]:
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        return super().pairs(concept, count, seed, tally)


@pytest.fixture
def backend(grammar: Grammar) -> GrammarBackend:
    return GrammarBackend(grammar)


def run(output: Path, backend: Backend, **options: Any) -> SynthesisReport:
    return synthesize(CONCEPTS, output, backend, **{"settings": SMALL} | options)


def rows(output: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(output.read_text(encoding="utf-8"))["train"]
    return found


def test_the_file_is_one_that_training_reads(backend: GrammarBackend, tmp_path: Path) -> None:
    report = run(tmp_path / "out.json", backend)
    pairs, read = read_pairs(tmp_path / "out.json")
    assert read.rows_read == report.pairs == 24
    assert {pair.concept for pair in pairs} == {concept.name for concept in CONCEPTS}
    assert {pair.category for pair in pairs} == {"violence", "shocking", "illegal activity", None}
    assert all(pair.safe is not None for pair in pairs)


def test_every_row_says_who_wrote_it(backend: GrammarBackend, tmp_path: Path) -> None:
    run(tmp_path / "out.json", backend)
    for row in rows(tmp_path / "out.json"):
        assert row["provenance"].pop("template").startswith("grammar:")
        assert row["provenance"] == {"backend": "grammar", "model": None, "version": backend.version, "seed": 0}


def test_synonyms_and_replacements_stand_in_their_rows(backend: GrammarBackend, tmp_path: Path) -> None:
    search = FixedSearch()
    settings = SynthesisSettings(per_concept=6, synonyms=2, adversarial=1)
    report = run(tmp_path / "out.json", backend, settings=settings, search=search)
    found = {row["concept"]: row for row in rows(tmp_path / "out.json")}
    assert all(row["concept_adv"] == ["quux"] for row in found.values())
    assert found["gun smuggling"]["provenance"]["encoder"] == "fixed"
    assert len(found["gun smuggling"]["concept_synonym"]) == 2
    assert "concept_synonym" not in found["thinspiration"]
    assert report.tally.without_synonyms == 1
    assert report.adversarial == 4
    assert all("gun smuggling" in context.lower() for context in search.contexts["gun smuggling"])
    variants = [pair.unsafe for pair in read_pairs(tmp_path / "out.json")[0]]
    assert any("quux" in text for text in variants)


def test_the_same_settings_give_the_same_file(backend: GrammarBackend, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run(tmp_path / f"{name}.json", backend, settings=SynthesisSettings(per_concept=6, seed=seed))
    first, second, other = ((tmp_path / f"{name}.json").read_bytes() for name in "abc")
    assert first == second != other


def test_a_killed_run_goes_on_and_ends_the_same(grammar: Grammar, backend: GrammarBackend, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole.json", tmp_path / "cut.json"
    run(whole, backend)
    with pytest.raises(KeyboardInterrupt):
        run(cut, Stopping(grammar, at=2))
    assert not cut.exists()
    journal = tmp_path / "cut.json.journal.jsonl"
    assert len(journal.read_text().splitlines()) == 3
    report = run(cut, Stopping(grammar, at=2), resume=True)
    assert report.resumed == 2
    assert cut.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        f"{name}.json{suffix}" for name in ("whole", "cut") for suffix in ("", ".report.json")
    )


def test_a_line_cut_off_by_a_kill_is_done_again(grammar: Grammar, backend: GrammarBackend, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole.json", tmp_path / "cut.json"
    run(whole, backend)
    with pytest.raises(KeyboardInterrupt):
        run(cut, Stopping(grammar, at=3))
    journal = tmp_path / "cut.json.journal.jsonl"
    for kept in (-20, -1):
        journal.write_bytes(journal.read_bytes()[:kept])
        with pytest.raises(KeyboardInterrupt):
            run(cut, Stopping(grammar, at=0), resume=True)
    assert run(cut, backend, resume=True).resumed == 1
    assert cut.read_bytes() == whole.read_bytes()


def test_an_unfinished_run_is_not_begun_anew_unasked(grammar: Grammar, backend: GrammarBackend, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "out.json", Stopping(grammar, at=1))
    with pytest.raises(DataError, match="go on with --resume"):
        run(tmp_path / "out.json", backend)


def test_a_journal_of_other_settings_is_refused(grammar: Grammar, backend: GrammarBackend, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "out.json", Stopping(grammar, at=1))
    other = SynthesisSettings(per_concept=7, synonyms=2, seed=3)
    with pytest.raises(DataError, match=r"other settings \(per_concept, seed\)"):
        run(tmp_path / "out.json", backend, settings=other, resume=True)


@pytest.mark.parametrize(
    ("content", "complaint"), [(b"{\n", "line 1: not JSON"), (b"3\n", "line 1: not an object"), (b"{}\n", "settings")]
)
def test_a_damaged_journal_is_refused(backend: GrammarBackend, tmp_path: Path, content: bytes, complaint: str) -> None:
    (tmp_path / "out.json.journal.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=complaint):
        run(tmp_path / "out.json", backend, resume=True)


def test_a_foreign_entry_is_refused(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j", {"a": 1})
    with journal.opened(resume=False):
        journal.append({"concept": "x"})
    with journal.opened(resume=True) as entries:
        assert entries == [{"concept": "x"}]
    with pytest.raises(DataError, match="not open"):
        journal.append({})


def test_resume_without_a_journal_begins(backend: GrammarBackend, tmp_path: Path) -> None:
    assert run(tmp_path / "out.json", backend, resume=True).resumed == 0


def test_concepts_that_nothing_is_written_for_are_reported(backend: GrammarBackend, tmp_path: Path) -> None:
    concepts = [ConceptEntry("gore"), ConceptEntry("sexualized child")]
    report = synthesize(concepts, tmp_path / "out.json", backend, SMALL)
    assert report.withheld_concepts == ["sexualized child"]
    assert {row["concept"] for row in rows(tmp_path / "out.json")} == {"gore"}
    told = json.loads((tmp_path / "out.json.report.json").read_text())
    assert told == report.as_dict()


def test_a_text_under_two_concepts_stands_once(backend: GrammarBackend, tmp_path: Path) -> None:
    concepts = [ConceptEntry("gore"), ConceptEntry("Gore!")]  # one name to the grammar
    report = synthesize(concepts, tmp_path / "out.json", backend, SynthesisSettings(per_concept=300, synonyms=0))
    texts = [row["prompt"] for row in rows(tmp_path / "out.json")]
    assert len(texts) == len(set(texts)) == report.pairs
    assert report.tally.duplicates > 0


@pytest.mark.parametrize(
    ("options", "complaint"),
    [({"per_concept": 0}, "at least 1"), ({"synonyms": -1}, "synonyms"), ({"adversarial": -1}, "adversarial")],
)
def test_settings_that_ask_for_nothing(options: dict[str, int], complaint: str) -> None:
    with pytest.raises(DataError, match=complaint):
        SynthesisSettings(**options)


def test_replacements_need_an_encoder(backend: GrammarBackend, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="encoder"):
        run(tmp_path / "out.json", backend, settings=SynthesisSettings(adversarial=1))


def test_an_output_that_can_not_be_written_is_told_first(grammar: Grammar, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        run(tmp_path / "nowhere" / "out.json", Stopping(grammar, at=0))


def test_no_progress_bar_off_a_terminal(
    backend: GrammarBackend, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path / "out.json", backend)
    assert capsys.readouterr() == ("", "")


# --- over an endpoint


def named(body: dict[str, Any]) -> str:
    """The concept that a request is about."""
    return str(re.search(r'"([a-z ]+)"', body["messages"][-1]["content"])[1])  # type: ignore[index]


def obliging(body: dict[str, Any], number: int) -> Reply:
    """Writes what it is asked for, slowly enough that requests overlap."""
    text = body["messages"][-1]["content"]
    if "synonyms" in text:
        reply = says({"synonyms": ["something else"]})
    elif "safe twin" in text:
        count = len(json.loads(text.split("Prompts: ")[1].splitlines()[0]))
        reply = says({"prompts": [f"{named(body).encode().hex()} picnic {place}" for place in range(count)]})
    else:
        reply = says({"prompts": [f"{named(body)} in street {place}" for place in range(3)]})
    reply.delay = 0.05
    return reply


def remote(server: ChatServer, **options: Any) -> LanguageModelBackend:
    defaults: dict[str, Any] = {"first_delay": 0.01, "longest_delay": 0.05, "attempts": 2, "timeout": 10}
    return LanguageModelBackend(Endpoint(EndpointSettings(server.url, "tiny", **defaults | options)))


THREE = SynthesisSettings(per_concept=3, synonyms=1)


def test_requests_run_side_by_side_up_to_the_bound(tmp_path: Path) -> None:
    with chat_server(obliging) as server:
        report = run(tmp_path / "out.json", remote(server, parallel=3), settings=THREE)
        assert 2 <= server.most_at_once <= 3
    assert (report.pairs, report.tally.requests) == (12, 12)
    assert [row["concept"] for row in rows(tmp_path / "out.json")][::3] == [concept.name for concept in CONCEPTS]


def test_the_order_of_answers_does_not_matter(tmp_path: Path) -> None:
    for parallel in (1, 4):
        with chat_server(obliging) as server:
            run(tmp_path / f"{parallel}.json", remote(server, parallel=parallel), settings=THREE)
    assert (tmp_path / "1.json").read_bytes() == (tmp_path / "4.json").read_bytes()


def test_refusals_are_in_the_report(tmp_path: Path) -> None:
    def answer(body: dict[str, Any], number: int) -> Reply:
        return says("I'm sorry, I can't help.") if named(body) == "gore" else obliging(body, number)

    with chat_server(answer) as server:
        report = run(tmp_path / "out.json", remote(server), settings=THREE)
    assert report.refused_concepts == ["gore"]
    assert (report.tally.refusals, report.tally.short, report.pairs) == (2, 1, 9)
    assert any("refused" in line for line in report.lines())


def test_a_broken_endpoint_ends_the_run_and_keeps_what_is_done(tmp_path: Path) -> None:
    broken = threading.Event()

    def answer(body: dict[str, Any], number: int) -> Reply:
        if named(body) == "thinspiration":
            broken.set()
        return fails(500) if broken.is_set() else obliging(body, number)

    with chat_server(answer) as server, pytest.raises(BackendError, match="status 500"):
        run(tmp_path / "out.json", remote(server, parallel=1), settings=THREE)
    assert not (tmp_path / "out.json").exists()
    with chat_server(obliging) as server:
        report = run(tmp_path / "out.json", remote(server), settings=THREE, resume=True)
    assert (report.resumed, report.pairs) == (2, 12)


def test_when_all_is_refused_there_is_a_report_and_no_file(tmp_path: Path) -> None:
    with chat_server(lambda body, number: says("I cannot do that.")) as server:  # noqa: SIM117
        with pytest.raises(DataError, match="nothing to write"):
            run(tmp_path / "out.json", remote(server), settings=THREE)
    assert [path.name for path in tmp_path.iterdir()] == ["out.json.report.json"]
