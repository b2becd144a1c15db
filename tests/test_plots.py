"""Pictures: each is a whole PNG or not there at all."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from latentguard import DataError
from latentguard.plots import (
    plot_latent_space,
    plot_learning_curve,
    plot_reliability,
    plot_roc,
    plot_score_histogram,
    plot_shares,
)

RANDOM = np.random.default_rng(0)
UNSAFE = RANDOM.random(40) < 0.5
SCORES = RANDOM.normal(size=40)
HISTORY = [
    {"step": step, "loss": 1 / step, "auc": 0.9, "auc_decisive": 0.9, "auc_twins": 0.8, "auc_ordinary": 0.95}
    for step in (1, 100, 200)
]
DRAW: dict[str, Callable[[Path], None]] = {
    "roc": lambda path: plot_roc({"ours": (UNSAFE, SCORES), "theirs": (UNSAFE, -SCORES)}, path),
    "labelled histogram": lambda path: plot_score_histogram("set", SCORES, UNSAFE, 0.5, path),
    "unlabelled histogram": lambda path: plot_score_histogram("set", SCORES, None, 0.5, path),
    "one-label histogram": lambda path: plot_score_histogram("set", SCORES, np.ones(40, dtype=bool), 0.5, path),
    "one-score histogram": lambda path: plot_score_histogram("set", np.full(3, 0.5), None, 0.5, path),
    "latent space": lambda path: plot_latent_space("set", RANDOM.normal(size=(40, 8)), SCORES[:, None], UNSAFE, path),
    "latent space of two": lambda path: plot_latent_space("set", np.eye(2), np.eye(2), np.array([True, False]), path),
    "reliability": lambda path: plot_reliability("set", RANDOM.random(40), UNSAFE, path),
    "reliability of one probability": lambda path: plot_reliability("set", np.full(40, 0.5), UNSAFE, path),
    "shares": lambda path: plot_shares("title", {"one": {"a": 0.5, "b": 1.0}, "other": {"a": 0, "b": 0.1}}, path),
    "shares of nothing": lambda path: plot_shares("title", {"one": {"a": 0.0, "b": 0.0, "c": 0.0, "d": 0.0}}, path),
    "learning curve": lambda path: plot_learning_curve(HISTORY, path),
    "learning curve of one step": lambda path: plot_learning_curve(HISTORY[:1], path),
}


@pytest.mark.parametrize("name", DRAW)
def test_a_png_is_drawn(name: str, tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "picture.png"
    DRAW[name](path)
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert content.endswith(b"IEND\xaeB`\x82")
    width, height = struct.unpack(">II", content[16:24])
    assert width > 400
    assert height > 300
    assert [p.name for p in path.parent.iterdir()] == ["picture.png"]


def test_the_reliability_diagram_says_the_expected_calibration_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []
    save = Figure.savefig

    def remembered(figure: Figure, target: Path, **options: object) -> None:
        drawn.append(figure)
        save(figure, target, **options)

    monkeypatch.setattr(Figure, "savefig", remembered)
    plot_reliability("set", np.array([0.2, 0.2, 0.9, 0.9]), np.array([False, True, True, False]), tmp_path / "r.png")
    [figure] = drawn
    assert figure.axes[0].get_title() == "Reliability of set: expected calibration error 0.350"


def test_a_picture_that_cannot_be_finished_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(b"the old one")

    def interrupted(figure: Figure, target: Path, **options: object) -> None:
        target.write_bytes(b"\x89PNG half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Figure, "savefig", interrupted)
    with pytest.raises(KeyboardInterrupt):
        DRAW["roc"](path)
    assert path.read_bytes() == b"the old one"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_made_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"file/picture\.png: can't be written"):
        DRAW["roc"](tmp_path / "file" / "picture.png")
