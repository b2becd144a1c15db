"""The table of costs: measured for real with a small tower, drawn, and put into a document."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("matplotlib", reason="the pictures are drawn with matplotlib")
pytest.importorskip("transformers", reason="the published pipeline is built with transformers")

import torch
from matplotlib.figure import Figure as Picture

from benchmarks import cost_report
from benchmarks.__main__ import BENCHMARKS, main
from benchmarks.cost import ENCODER, LOADED, MEMORY, PARTS, TIME, cost
from benchmarks.plots import plot_cost_memory, plot_cost_time
from benchmarks.reference import PublishedPipeline, Tower, published_scores, published_scores_at_once
from benchmarks.report import Figure
from benchmarks.settings import Settings

FEW, MANY = 3, 200
# 4 prompts and 200 concepts are more pairs than the published calculation is asked for.
TINY = Settings(threads=1, concepts=(FEW, MANY), batches=(1, 4), rounds=1, pairs=700, tower=Tower(32, 1, 2, 64, 100))
PAIR = 78 * (32 + 2 * 512) * 4 / 1e6
"""MB of one pair's states, keys and values at the least."""
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def figures() -> list[Figure]:
    threads = torch.get_num_threads()
    try:
        return cost(TINY)
    finally:
        torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def at(figures: list[Figure]) -> Callable[[str, int | None, int], Figure]:
    found = {(figure.what, figure.prompts, figure.concepts): figure for figure in figures}
    return lambda what, prompts, concepts: found[what, prompts, concepts]


@pytest.fixture
def measured(figures: list[Figure], monkeypatch: pytest.MonkeyPatch) -> None:
    """The command measures no more than this file has measured already."""
    monkeypatch.setitem(BENCHMARKS, "cost", lambda settings: figures)


def test_every_batch_with_every_bank_is_measured(figures: list[Figure]) -> None:
    cells = {(prompts, concepts) for prompts in (1, 4) for concepts in (FEW, MANY)}
    for what in (TIME, ENCODER, MEMORY, *PARTS):
        assert {(f.prompts, f.concepts) for f in figures if f.what == what} == cells
    assert {f.concepts for f in figures if f.what == LOADED} == {FEW, MANY}
    assert all(f.value > 0 and f.benchmark == "cost" for f in figures)


def test_of_the_published_calculation_too_many_pairs_are_left_out(figures: list[Figure]) -> None:
    cells = [f for f in figures if f.what in (TIME, MEMORY)]
    assert {(f.prompts, f.concepts) for f in cells if f.reference is None} == {(4, MANY)}
    assert all((f.ratio is None) == (f.reference is None) for f in cells)


def test_the_published_calculation_takes_memory_for_each_pair(
    at: Callable[[str, int | None, int], Figure],
) -> None:
    loaded, called = at(LOADED, None, MANY).reference, at(MEMORY, 1, MANY).reference
    few = at(MEMORY, 1, FEW).reference
    assert loaded is not None
    assert called is not None
    assert few is not None
    assert called - loaded > 0.8 * MANY * PAIR
    assert called - few > 0.5 * (MANY - FEW) * PAIR


def test_the_guard_takes_some_hundred_megabytes_and_little_for_a_concept(
    at: Callable[[str, int | None, int], Figure],
) -> None:
    for concepts in (FEW, MANY):
        loaded = at(LOADED, None, concepts).value
        assert 20 < loaded < 600
        assert loaded <= at(MEMORY, 1, concepts).value <= at(MEMORY, 4, concepts).value < 800
    assert at(MEMORY, 4, MANY).value - at(MEMORY, 4, FEW).value < 0.5 * 4 * (MANY - FEW) * PAIR


def test_all_pairs_at_once_give_the_scores_of_one_prompt_after_another() -> None:
    pipeline = PublishedPipeline(TINY.tower)
    bank, states = pipeline.concepts(700), torch.randn(3, 78, 32)
    together = published_scores_at_once(pipeline.mapping, bank, states)
    alone = torch.stack([published_scores(pipeline.mapping, bank, one) for one in states])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=0)
    assert pipeline.states(2).shape == (2, 78, 32)


@pytest.mark.parametrize("draw", [plot_cost_time, plot_cost_memory])
def test_each_bank_and_each_batch_is_a_line_of_ours_and_one_of_theirs(
    draw: Callable[[list[Figure], Path], None],
    figures: list[Figure],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn: list[Picture] = []
    save = Picture.savefig

    def remembered(picture: Picture, target: Path, **options: object) -> None:
        drawn.append(picture)
        save(picture, target, **options)

    monkeypatch.setattr(Picture, "savefig", remembered)
    draw(figures, tmp_path / "cost.png")
    content = (tmp_path / "cost.png").read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert content.endswith(b"IEND\xaeB`\x82")
    [picture] = drawn
    by_size, by_bank = picture.axes
    for axes, places in ((by_size, [1, 4]), (by_bank, [FEW, MANY])):
        assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
        # Of the larger bank, and of the larger batch, one place was left out of theirs.
        assert [list(line.get_xdata()) for line in axes.lines] == [places, places, places, places[:1]]
    what = TIME if draw is plot_cost_time else MEMORY
    many = [f for f in figures if f.what == what and f.concepts == MANY]
    assert list(by_size.lines[2].get_ydata()) == [f.value for f in many]


def test_what_was_measured_is_drawn_and_documented_again_from_its_file(
    measured: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    document = tmp_path / "cost.md"
    document.write_text(f"# Cost\n\n{cost_report.BEGIN}\nold\n{cost_report.END}\n\nAfter.\n", encoding="utf-8")
    threads = torch.get_num_threads()
    try:
        assert main(["--only", "cost", "--json", str(tmp_path / "figures.json")]) == 0
    finally:
        torch.set_num_threads(threads)
    shown = capsys.readouterr()
    assert shown.err == ""  # no progress where nobody watches

    monkeypatch.setitem(BENCHMARKS, "cost", lambda settings: pytest.fail("measured again"))
    again = ["--from-json", str(tmp_path / "figures.json"), "--document", str(document)]
    assert main([*again, "--plots", str(tmp_path / "plots")]) == 0
    assert {path.name for path in (tmp_path / "plots").iterdir()} == {"cost-time.png", "cost-memory.png"}
    text = document.read_text(encoding="utf-8")
    assert text.startswith(f"# Cost\n\n{cost_report.BEGIN}\nPython ")
    assert text.endswith(f"\n{cost_report.END}\n\nAfter.\n")
    assert "old" not in text
    table = text[text.index("| concepts") : text.index(cost_report.END)].rstrip()
    assert table in shown.out
    assert "—" in table
    assert main(again) == 0
    assert document.read_text(encoding="utf-8") == text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--threads", "0"], "at least 1"),
        (["--threads", "two"], "invalid"),
        (["--device", "nowhere"], "nowhere: not a device"),
        (["--device", "numpy"], "numpy: the costs are those of PyTorch"),
        (["--json", "missing/figures.json"], "the folder missing does not exist"),
        (["--plots", "file/plots"], "file/plots: can't be made"),
        (["--document", "file"], "file: has no lines"),
        (["--document", "missing.md"], "missing.md: can't be read"),
        (["--from-json", "missing.json"], "missing.json: can't be read"),
        (["--from-json", "file"], "file: not a file that --json wrote"),
        (["--from-json", "list.json"], "list.json: not a file that --json wrote"),
        (["--from-json", "none.json"], "none.json: has no figures of the benchmark cost"),
        (["--only", "scoring", "--plots", "plots"], "--only leaves out"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_would_fail_at_the_end_is_refused_before_anything_is_measured(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in BENCHMARKS:
        monkeypatch.setitem(BENCHMARKS, name, lambda settings: pytest.fail("measured"))
    Path("file").write_text("no figures, no marks")
    Path("list.json").write_text("[1]")
    Path("none.json").write_text('{"circumstances": "here", "figures": []}')
    with pytest.raises(SystemExit) as refused:
        main(arguments)
    assert refused.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_the_projects_page_can_be_rewritten_and_has_its_pictures() -> None:
    page = ROOT / "docs" / "cost.md"
    before, after = cost_report.around_tables(page)
    for picture in ("cost-time.png", "cost-memory.png"):
        assert f"(figures/{picture})" in before + after
        assert (ROOT / "docs" / "figures" / picture).stat().st_size > 10_000
