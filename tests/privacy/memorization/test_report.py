"""Verdicts and reports: what a person reads, and what a program does."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from privacy.errors import DataError, MemorizationError
from privacy.memorization.audit import Audit
from privacy.memorization.exposure import exposure, membership
from privacy.memorization.report import summary, verdict_of, write_report


def audit(advantage: float, *, canaries: int = 60, model: str = "tuned", trained: int | None = None) -> Audit:
    """An audit whose canaries' scores are `advantage` standard deviations above those of their candidates."""
    scores = np.random.default_rng(1).normal(size=(canaries, 16))
    scores[:, 0] += advantage
    candidates = np.arange(canaries * 15).reshape(canaries, 15)
    rows = tuple(range(1, canaries + 1))
    found = exposure(scores), membership(scores, candidates)
    return Audit(model, "base", rows, scores, 2 * canaries, trained, *found)


def report_of(found: Audit, folder: Path, **also: Path) -> str:
    write_report(found, verdict_of(found), folder, **also)
    return (folder / "report.html").read_text(encoding="utf-8")


class Links(HTMLParser):
    """Collects all that a page would load or run."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.loaded += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]


@pytest.mark.parametrize(("advantage", "outcome"), [(3.0, "remembers"), (-1.0, "clean")])
def test_verdict_is_that_of_the_confidence_interval(advantage: float, outcome: str) -> None:
    assert verdict_of(audit(advantage)).outcome == outcome


def test_verdict_is_open_where_the_bound_lies_within_the_interval() -> None:
    found = audit(0.4, canaries=12)

    assert found.membership.auc.low < 0.6 < found.membership.auc.high
    assert verdict_of(found).outcome == "undecided"


def test_a_bound_that_is_tolerated_makes_a_model_clean() -> None:
    found = audit(1.0)

    assert verdict_of(found, 0.5).outcome == "remembers"
    assert verdict_of(found, 0.95).outcome == "clean"


@pytest.mark.parametrize("bound", [0.4, 1.0, float("nan")])
def test_a_bound_that_is_none_is_refused(bound: float) -> None:
    with pytest.raises(MemorizationError, match="bound of the AUC"):
        verdict_of(audit(0), bound)


def test_page_begins_with_the_verdict(tmp_path: Path) -> None:
    page = report_of(audit(3.0), tmp_path)
    text = re.sub(r"<[^>]*>", " ", page[page.index("<body>") :]).split()

    assert " ".join(text).startswith("This model remembers private data it was fine-tuned on.")


def test_page_loads_nothing_and_runs_nothing(tmp_path: Path) -> None:
    page = report_of(audit(3.0), tmp_path)
    links = Links()
    links.feed(page)

    assert len(links.loaded) == 2
    assert all(link.startswith("data:image/png;base64,") for link in links.loaded)
    assert not links.tags & {"script", "link", "iframe", "object", "form"}
    assert "default-src 'none'" in page


def test_what_stands_in_names_is_escaped(tmp_path: Path) -> None:
    page = report_of(audit(0, model="<script>alert(1)</script>"), tmp_path)

    assert "<script>" not in page
    assert "&lt;script&gt;" in page


def test_json_has_the_figures_and_canaries_by_row_alone(tmp_path: Path) -> None:
    found = audit(3.0)
    report_of(found, tmp_path)
    written = json.loads((tmp_path / "audit.json").read_text(encoding="utf-8"))

    assert written["verdict"]["outcome"] == "remembers"
    assert written["membership"]["auc"]["low"] == found.membership.auc.low
    assert [set(each) for each in written["exposure"]["by_canary"]] == [{"row", "rank", "bits"}] * 60
    assert (written["canaries"], written["candidates"], written["images"]) == (60, 15, 120)


def test_a_model_that_saw_no_record_is_called_a_control(tmp_path: Path) -> None:
    assert "this audit is a control" in summary(*with_verdict(audit(0, trained=0)))
    assert "this audit is a control" not in summary(*with_verdict(audit(0, trained=60)))


def test_results_of_probe_and_gradients_are_shown(tmp_path: Path) -> None:
    row = {"model": "50%", "design": "new records", "layer": "language.2", "accuracy": 0.8, "chance": 0.5}
    probe = results(tmp_path / "probe", "probe.json", [row | {"p_any_layer": 0.01}], "layers.png", "tsne.png")
    gradients = results(tmp_path / "gradients", "gradients.json", [{"layer": "projector"}], "heatmap.png")

    page = report_of(audit(3.0), tmp_path, probe=probe, gradients=gradients)

    assert page.count("<img src=") == 5
    assert "50%, new records: 80.0% at language.2 (chance 50.0%, p = 0.010)" in page


@pytest.mark.parametrize("content", ["{}", "not json", '{"rows": [{"model": "50%"}]}'])
def test_results_that_are_none_are_named(tmp_path: Path, content: str) -> None:
    folder = results(tmp_path / "probe", "probe.json", [], "layers.png", "tsne.png")
    (folder / "probe.json").write_text(content, encoding="utf-8")

    with pytest.raises(DataError, match=r"probe\.json: isn't what the command"):
        report_of(audit(0), tmp_path, probe=folder)
    assert not (tmp_path / "report.html").exists()


def test_a_picture_that_is_none_is_named(tmp_path: Path) -> None:
    folder = results(tmp_path / "gradients", "gradients.json", [], "heatmap.png")
    (folder / "heatmap.png").write_text("<svg>", encoding="utf-8")

    with pytest.raises(DataError, match=r"heatmap\.png: is no PNG"):
        report_of(audit(0), tmp_path, gradients=folder)


def with_verdict(found: Audit) -> tuple[Audit, object]:
    return found, verdict_of(found)


def results(folder: Path, name: str, rows: list[dict[str, object]], *pictures: str) -> Path:
    folder.mkdir()
    (folder / name).write_text(json.dumps({"rows": rows}), encoding="utf-8")
    for picture in pictures:
        Image.new("RGB", (4, 4)).save(folder / picture)
    return folder
