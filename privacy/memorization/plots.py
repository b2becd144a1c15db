"""Pictures of an audit's figures. Each function draws one PNG, whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from privacy.files import atomic_path

_SEEN, _UNSEEN = "#c0392b", "#2471a3"
_MODELS = ("#555555", "#d68910", "#c0392b", "#2471a3", "#229954", "#7d3c98")
_MARKERS = "osD^vP"


@dataclass(frozen=True)
class Curve:
    """A model's probe accuracy over the layers of a panel, each [layers], with its 95% interval and its chance."""

    accuracy: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    chance: Sequence[float]


@dataclass(frozen=True)
class Panel:
    """The curves of several models over the same layers."""

    title: str
    layers: Sequence[str]
    curves: Mapping[str, Curve]


def draw_layers(panels: Sequence[Sequence[Panel]], path: Path) -> None:
    """Probe accuracy by layer, a line with its band for each model, in a grid of panels [rows][columns].

    As in Ju et al., "Watch Out Your Album!". A dotted line of the model's colour is its chance: the mean over permuted
    labels. Raises DataError if the file can't be written.
    """
    rows, columns = len(panels), max(len(row) for row in panels)
    figure = Figure(figsize=(1.5 + 5 * columns, 0.8 + 3.2 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey="row")
    lines: dict[str, Any] = {}
    for axes_row, panel_row in zip(grid, panels, strict=True):
        for axes, panel in zip(axes_row, panel_row, strict=False):
            lines |= _draw_panel(axes, panel)
        axes_row[0].set_ylabel("probe accuracy")
    figure.legend(lines.values(), lines, loc="outside lower center", ncols=min(4, len(lines)))
    figure.suptitle("Telling seen from unseen private records (bands: 95%; dotted: chance)")
    _save(figure, path)


def draw_heat_map(
    layers: Sequence[str], comparisons: Sequence[str], cosines: NDArray[np.float64], path: Path, *, title: str
) -> None:
    """Cosine similarities [layers, comparisons] of gradients, with their figures; grey where there is no gradient.

    Raises DataError if the file can't be written.
    """
    figure = Figure(figsize=(2.6 + 1.25 * len(comparisons), 2 + 0.27 * len(layers)), layout="constrained")
    axes = figure.subplots()
    known = cosines[np.isfinite(cosines)]
    lowest = min(0.0, float(known.min())) if known.size else 0.0
    axes.set_facecolor("#cccccc")
    image = axes.imshow(np.ma.masked_invalid(cosines), vmin=lowest, vmax=1, cmap="viridis", aspect="auto")
    for row, column in np.ndindex(cosines.shape):
        value = cosines[row, column]
        dark = (value - lowest) / (1 - lowest) < 0.6
        text = f"{value:.3f}" if np.isfinite(value) else "–"
        axes.text(column, row, text, ha="center", va="center", fontsize=7, color="white" if dark else "black")
    axes.set_xticks(range(len(comparisons)), [name.replace(" ", "\n", 1) for name in comparisons], fontsize=8)
    axes.set_yticks(range(len(layers)), layers, fontsize=8)
    axes.xaxis.tick_top()
    for above in _starts_of_towers(layers):
        axes.axhline(above - 0.5, color="white", linewidth=2)
    figure.colorbar(image, ax=axes, label="cosine similarity")
    figure.suptitle(title)
    _save(figure, path)


def draw_tsne(states: Mapping[str, NDArray[Any]], seen: NDArray[np.bool_], path: Path, *, layer: str) -> None:
    """t-SNE of the states [n, D] of each model at one layer, side by side, coloured by whether the record was seen.

    van der Maaten and Hinton (2008). Raises DataError if the file can't be written.
    """
    from sklearn.manifold import TSNE
    from sklearn.preprocessing import StandardScaler

    figure = Figure(figsize=(4.2 * len(states), 4.8), layout="constrained")
    panels = figure.subplots(1, len(states), squeeze=False)[0]
    perplexity = min(30.0, max(1.0, (len(seen) - 1) / 3))
    for axes, (name, points) in zip(panels, states.items(), strict=True):
        scaled = StandardScaler().fit_transform(points.astype(np.float64))
        flat = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(scaled)
        for mask, color, marker, label in ((~seen, _UNSEEN, "o", "unseen record"), (seen, _SEEN, "^", "seen record")):
            axes.scatter(*flat[mask].T, s=12, alpha=0.7, color=color, marker=marker, label=label, linewidths=0)
        axes.set_title(name)
        axes.set_xticks([])
        axes.set_yticks([])
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, markerscale=2)
    figure.suptitle(f"t-SNE of the states at {layer}")
    _save(figure, path)


def _draw_panel(axes: Any, panel: Panel) -> dict[str, Any]:
    places = range(len(panel.layers))
    lines: dict[str, Any] = {}
    for number, (name, curve) in enumerate(panel.curves.items()):
        color = _MODELS[number % len(_MODELS)]
        axes.fill_between(places, curve.low, curve.high, color=color, alpha=0.15, linewidth=0)
        axes.plot(places, curve.chance, color=color, linestyle=":", linewidth=1)
        marker = _MARKERS[number % len(_MARKERS)]
        (lines[name],) = axes.plot(places, curve.accuracy, color=color, marker=marker, markersize=4)
    step = max(1, len(panel.layers) // 12)
    axes.set_xticks(places[::step], [_short(name) for name in panel.layers[::step]])
    axes.set_xlabel("block")
    axes.set_title(panel.title, fontsize=10)
    axes.grid(alpha=0.3)
    return lines


def _short(layer: str) -> str:
    place = layer.partition(".")[2]
    return place if place.isdecimal() else "in"


def _starts_of_towers(layers: Sequence[str]) -> list[int]:
    """The rows at which another tower begins, or the row of the whole model."""
    towers = [name.partition(".")[0] for name in layers]
    return [row for row in range(1, len(towers)) if towers[row] != towers[row - 1]]


def _save(figure: Figure, path: Path) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
