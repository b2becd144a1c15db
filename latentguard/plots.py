"""Pictures of figures. Each function draws one PNG, whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from sklearn.metrics import roc_auc_score, roc_curve

from latentguard.calibration import reliability
from latentguard.files import atomic_path, write_error

_UNSAFE, _HARMLESS, _MARK = "#c0392b", "#2471a3", "#555555"


def plot_learning_curve(history: Sequence[Mapping[str, float]], path: Path) -> None:
    """Loss and held-out AUCs by training step; the best step is marked."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    left = figure.subplots()
    right = left.twinx()
    steps = [row["step"] for row in history]
    lines = left.plot(steps, [row["loss"] for row in history], color=_MARK, alpha=0.5, label="training loss")
    for name, label, color in (
        ("auc", "AUC, all harmless", _UNSAFE),
        ("auc_twins", "AUC, safe twins", _HARMLESS),
        ("auc_ordinary", "AUC, ordinary prompts", "#229954"),
        ("auc_familiar", "AUC, known concepts", "#d68910"),
        ("auc_prompts", "AUC, prompt head", "#7d3c98"),
    ):
        if name not in history[0]:
            continue
        lines += right.plot(steps, [row[name] for row in history], color=color, marker="o", markersize=3, label=label)
    best = max(history, key=lambda row: row["auc_decisive"])
    right.axvline(best["step"], color=_MARK, linestyle=":", linewidth=1)
    right.annotate(f"best {best['auc']:.4f}", (best["step"], best["auc"]), (5, 6), textcoords="offset points")
    left.set_xlabel("step")
    left.set_ylabel("training loss")
    right.set_ylabel("AUC on held-out concepts")
    left.set_title("Learning curve")
    figure.legend(lines, [str(line.get_label()) for line in lines], loc="outside lower center", ncols=3)
    _save(figure, path)


def plot_roc(curves: Mapping[str, tuple[np.ndarray, np.ndarray]], path: Path) -> None:
    """ROC curves of several score lists, by name: (unsafe bool [n], scores [n]); false positives on a log axis."""
    figure = Figure(figsize=(6.5, 5.5), layout="constrained")
    axes = figure.subplots()
    for name, (unsafe, scores) in curves.items():
        false_positives, true_positives, _ = roc_curve(unsafe, scores)
        axes.plot(false_positives, true_positives, label=f"{name} (AUC {roc_auc_score(unsafe, scores):.3f})")
    axes.axvline(0.01, color=_MARK, linestyle=":", linewidth=1)
    axes.set_xscale("log")
    axes.set_xlim(1e-3, 1)
    axes.set_ylim(0, 1)
    axes.set_xlabel("false-positive rate (log scale; dotted: 1%)")
    axes.set_ylabel("true-positive rate")
    axes.set_title("ROC")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", fontsize="small")
    _save(figure, path)


def plot_score_histogram(
    name: str, scores: np.ndarray, unsafe: np.ndarray | None, threshold: float, path: Path
) -> None:
    """The distribution of one file's scores, unsafe and harmless apart where labels are known, with the threshold."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    bins = np.linspace(min(scores.min(), threshold), max(scores.max(), threshold), 60).tolist()
    if unsafe is None:
        axes.hist(scores, bins=bins, color=_MARK, alpha=0.6, label="unlabelled")
    else:
        axes.hist(scores[~unsafe], bins=bins, color=_HARMLESS, alpha=0.6, label="harmless")
        axes.hist(scores[unsafe], bins=bins, color=_UNSAFE, alpha=0.6, label="unsafe")
    axes.axvline(threshold, color="black", linestyle="--", linewidth=1, label=f"threshold {threshold:.2f}")
    axes.set_xlabel("score")
    axes.set_ylabel("prompts")
    axes.set_title(f"Scores of {name}")
    figure.legend(loc="outside lower center", ncols=3)
    _save(figure, path)


def plot_latent_space(name: str, before: np.ndarray, after: np.ndarray, unsafe: np.ndarray, path: Path) -> None:
    """t-SNE of prompts [n, D] before and [n, O] after the mapping layer, side by side, coloured by label.

    After Liu et al., ECCV 2024, figure 5: what the encoder mixes, the mapping layer should part.
    """
    from sklearn.manifold import TSNE

    figure = Figure(figsize=(11, 5), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, points, title in zip(panels, (before, after), ("encoder", "mapping layer"), strict=True):
        perplexity = min(30.0, max(1.0, (len(points) - 1) / 3))
        flat = TSNE(metric="cosine", init="random", perplexity=perplexity, random_state=0).fit_transform(points)
        for mask, color, label in ((~unsafe, _HARMLESS, "harmless"), (unsafe, _UNSAFE, "unsafe")):
            axes.scatter(*flat[mask].T, s=6, alpha=0.6, color=color, label=label, linewidths=0)
        axes.set_title(title)
        axes.set_xticks([])
        axes.set_yticks([])
    panels[0].legend(markerscale=3)
    figure.suptitle(f"t-SNE of {name}")
    _save(figure, path)


def plot_reliability(name: str, probabilities: np.ndarray, unsafe: np.ndarray, path: Path) -> None:
    """Predicted probability of harm against the share that is harmful, in bins of equally many prompts.

    Probabilities presume as many harmful prompts as harmless ones, so each kind is given half of the weight.
    """
    bins = reliability(probabilities, unsafe)
    figure = Figure(figsize=(6, 6.5), layout="constrained")
    curve, counts = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    curve.plot([0, 1], [0, 1], color=_MARK, linestyle=":", linewidth=1, label="perfect")
    curve.plot(bins.predicted, bins.observed, color=_UNSAFE, marker="o", markersize=4, label="a bin's prompts")
    curve.set_ylabel("share that is harmful")
    curve.set_ylim(0, 1)
    curve.grid(alpha=0.3)
    curve.legend(loc="upper left")
    edges = np.linspace(0, 1, 41).tolist()
    for chosen, color, label in ((~unsafe, _HARMLESS, "harmless"), (unsafe, _UNSAFE, "unsafe")):
        counts.hist(probabilities[chosen], bins=edges, color=color, alpha=0.6, label=label)
    counts.set_yscale("log")
    counts.set_xlim(0, 1)
    counts.set_ylabel("prompts")
    counts.set_xlabel("predicted probability (as many harmful as harmless prompts presumed)")
    counts.legend(fontsize="small")
    curve.set_title(f"Reliability of {name}: expected calibration error {bins.calibration_error:.3f}")
    _save(figure, path)


def plot_shares(title: str, series: Mapping[str, Mapping[str, float]], path: Path) -> None:
    """Shares between 0 and 1 as bars: a group of bars for each name, in it one for each series, by its label."""
    names = list(next(iter(series.values())))
    figure = Figure(figsize=(8, 1.5 + 0.28 * len(names) * len(series)), layout="constrained")
    axes = figure.subplots()
    height = 0.8 / len(series)
    colors = (_UNSAFE, _HARMLESS, _MARK)[: len(series)]
    for row, ((label, shares), color) in enumerate(zip(series.items(), colors, strict=True)):
        places = np.arange(len(names)) + (row - (len(series) - 1) / 2) * height
        bars = axes.barh(places, [shares[name] for name in names], height, color=color, alpha=0.8, label=label)
        axes.bar_label(bars, [f"{shares[name]:.1%}" for name in names], padding=3, fontsize="small")
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    longest = max(share for shares in series.values() for share in shares.values())
    axes.set_xlim(0, 1.15 * max(longest, 0.01))  # with room for the label of the longest
    axes.set_xlabel("share blocked")
    axes.set_title(title)
    if len(series) > 1:
        figure.legend(loc="outside lower center", ncols=len(series))
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(path, error) from error
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
