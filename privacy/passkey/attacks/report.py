"""The figures of a trial as a table and as a chart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from privacy.errors import DataError
from privacy.files import atomic_path
from privacy.passkey.attacks.scoring import Outcome

_SUFFIXES = (".pdf", ".png", ".svg")
_MARKS = "osD^vPX*<>hp"


def as_table(outcomes: Sequence[Outcome], costs: Mapping[str, float]) -> str:
    """Lines of text: what each attack read, in % of the running tokens / of the different ones; then the costs."""
    words = sorted({each for outcome in outcomes for each in outcome.recovered})
    width = max(len(outcome.attack) for outcome in outcomes) + 2
    lines = [f"{'read, % of tokens / of types':{width}}" + "".join(f"{_words(each):>14}" for each in words)]
    group = ""
    for outcome in outcomes:
        if outcome.group != group:
            group = outcome.group
            lines.append(group)
        cells = [outcome.recovered.get(each) for each in words]
        shown = [f"{100 * cell.tokens:.1f} / {100 * cell.types:.1f}" if cell else "" for cell in cells]
        lines.append((f"  {outcome.attack:{width - 2}}" + "".join(f"{cell:>14}" for cell in shown)).rstrip())
    lines += ["", "similarities of texts, correlation with the original model's"]
    lines += [f"  {name:{width - 2}}{cost:>14.3f}" for name, cost in costs.items()]
    return "\n".join(lines)


def draw_chart(outcomes: Sequence[Outcome], path: str | Path) -> None:
    """Draws the share of running tokens that each attack on ids read, and each on embeddings.

    Raises:
        DataError: the file can't be written, or its name ends in none of .pdf, .png and .svg.
    """
    from matplotlib.figure import Figure

    path = Path(path)
    check_chart_name(path)
    figure = Figure(figsize=(11, 6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    on_ids = [each for each in outcomes if 0 not in each.recovered and not each.group.startswith("embeddings")]
    for mark, outcome in zip(_MARKS * len(on_ids), on_ids, strict=False):
        words = sorted(outcome.recovered)
        shares = [100 * outcome.recovered[each].tokens for each in words]
        style = "--" if "simulated" in outcome.group else "-"
        left.plot(words, shares, style, marker=mark, label=outcome.attack)
    left.set(xscale="log", ylim=(-3, 107), xlabel="words of known text", ylabel="running tokens read, %")
    left.set_title("From encrypted ids")
    left.grid(alpha=0.3)
    left.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
    on_rows = [each for each in outcomes if 0 in each.recovered and each.group.startswith("embeddings, ")]
    names = list(dict.fromkeys(each.group.removeprefix("embeddings, ") for each in on_rows))
    attacks = list(dict.fromkeys(each.attack for each in on_rows))
    for number, attack in enumerate(attacks):
        bars = [each for each in on_rows if each.attack == attack]
        places = [names.index(each.group.removeprefix("embeddings, ")) + 0.4 * number - 0.2 for each in bars]
        drawn = right.bar(places, [100 * each.recovered[0].tokens for each in bars], width=0.38, label=attack)
        right.bar_label(drawn, fmt="%.0f", fontsize=8)
    right.set_xticks(range(len(names)), [name.replace(" (", "\n(").replace(", ", ",\n") for name in names], fontsize=8)
    right.set_title("From embeddings and the original model, no text")
    right.grid(alpha=0.3, axis="y")
    right.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120, format=path.suffix[1:].lower())


def check_chart_name(path: Path) -> None:
    """Raises DataError unless a chart can have this name."""
    if path.suffix.lower() not in _SUFFIXES:
        raise DataError(f"{path}: its suffix is none of {', '.join(_SUFFIXES)}")


def _words(number: int) -> str:
    return f"{number:,} words" if number else "no text"
