"""What a run is: its inputs, its guard and its options. Two runs of which these are the same make the same rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentguard import __version__
from latentguard.errors import DataError
from latentguard.fingerprint import fingerprint, model_fingerprint
from latentguard.records import arrow_schema
from latentguard.screening.inputs import InputDigest, InputState, digest_of
from latentguard.screening.layout import Layout, layout_of
from latentguard.screening.options import ScreeningOptions
from latentguard.screening.parts import Source

if TYPE_CHECKING:
    from latentguard.guard import LatentGuard

_FORMAT = 1


@dataclass(frozen=True)
class GuardIdentity:
    """What decides.

    Attributes:
        version: latentguard's, whose code reads the prompts.
        fingerprint: of weights, concepts and thresholds.
        encoder: its name.
        arithmetic: what the encoder computes with; scores differ slightly between two of them.
        concepts, threshold: of the bank and the policy, for the reader.
    """

    version: str
    fingerprint: str
    encoder: str
    arithmetic: str
    concepts: int
    threshold: float

    @classmethod
    def of(cls, guard: LatentGuard) -> GuardIdentity:
        """That of a guard as it is now."""
        device = guard.encoder.device
        precision = getattr(guard.encoder, "precision", "fp32")  # only the embedded encoder has a choice
        return cls(
            __version__,
            fingerprint(guard, model_fingerprint(guard)),
            guard.encoder.name,
            f"{device} {precision}" if device.type == "cpu" else device.type,
            len(guard.concepts),
            guard.policy.threshold,
        )

    def on(self, arithmetic: str) -> GuardIdentity:
        """That of the same guard computing with something else."""
        return replace(self, arithmetic=arithmetic)


@dataclass(frozen=True)
class Plan:
    """All that a run needs to know but its guard."""

    sources: tuple[Source, ...]
    digests: tuple[InputDigest, ...]
    options: ScreeningOptions
    layout: Layout
    guard: GuardIdentity

    @classmethod
    def of(cls, paths: Sequence[Path], options: ScreeningOptions, guard: GuardIdentity, *, flags: bool) -> Plan:
        """The plan for screening these files; reads each once, for its digest.

        Args:
            flags: whether the guard's policy flags prompts.

        Raises:
            DataError: a file can't be read, or hasn't the columns that are asked for.
        """
        layout = layout_of(paths, options, flags=flags, parquet=True)
        # The state first: what is written while the digest is made must not go unnoticed.
        sources = tuple(Source(place, path, InputState.of(path)) for place, path in enumerate(paths))
        return cls(sources, tuple(digest_of(path) for path in paths), options, layout, guard)

    @property
    def size(self) -> int:
        """The bytes of all inputs."""
        return sum(digest.size for digest in self.digests)

    def settings(self) -> dict[str, Any]:
        """What has to be the same for an interrupted run to be gone on with, as JSON holds it."""
        options = self.options
        return {
            "format": _FORMAT,
            "inputs": [asdict(digest) for digest in self.digests],
            "guard": asdict(self.guard),
            "options": {
                "column": options.column,
                "keep": options.keep if isinstance(options.keep, str) else list(options.keep),
                "only": options.only,
                "near_duplicates": options.near_duplicates,
                "unusable": options.unusable,
                "part_rows": options.part_rows,
            },
            "columns": {field.name: str(field.type) for field in arrow_schema(self.layout.columns)},
        }


_WORDS = {
    "format": "by another version of latentguard",
    "guard": "with another guard (weights, concepts, thresholds, arithmetic or version)",
    "columns": "with other columns",
}


def check_same(folder: Path, begun: dict[str, Any], now: dict[str, Any]) -> None:
    """Raises DataError, which names the first difference, unless a run in `folder` was begun with these settings."""
    for name, value in now.items():
        before = begun.get(name)
        if before == value:
            continue
        if name == "inputs":
            how = _other_inputs(before, value)
        elif name == "options" and isinstance(before, dict):
            how = "with another " + next(
                f"{each} ({before.get(each)})" for each in value if before.get(each) != value[each]
            )
        else:
            how = _WORDS.get(name, f"with another {name}")
        raise DataError(f"{folder}: was begun {how}; give another output, or remove it to begin anew")


def _other_inputs(before: Any, now: list[dict[str, Any]]) -> str:
    known = {each.get("path"): each for each in before} if isinstance(before, list) else {}
    for each in now:
        if each["path"] in known and each != known[each["path"]]:
            return f"when {each['path']} was another file"
    return "with other inputs"
