"""How a guard is made, so that another process can make the same one."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from latentguard.records import ConceptEntry

if TYPE_CHECKING:
    from latentguard.guard import LatentGuard


@dataclass(frozen=True)
class GuardRecipe:
    """The weights by name or folder, and the bank, threshold and margin for flagging where they aren't the weights'.

    ``precision``, ``compiler`` and ``search`` are as for :meth:`LatentGuard.from_pretrained`.
    """

    model: str | None = None
    concepts: tuple[ConceptEntry, ...] | None = None
    threshold: float | None = None
    flag_margin: float = 0.0
    precision: str | None = None
    compiler: str | None = None
    search: int | None = None

    def guard(self, *, device: str = "auto", threads: int | None = None) -> LatentGuard:
        """A new guard; errors and the meaning of the arguments as :meth:`LatentGuard.from_pretrained`."""
        from latentguard.guard import LatentGuard

        guard = LatentGuard.from_pretrained(
            self.model,
            concepts=self.concepts,
            threshold=self.threshold,
            device=device,
            precision=self.precision,
            threads=threads,
            compiler=self.compiler,
            search=self.search,
        )
        guard.policy = replace(guard.policy, flag_margin=self.flag_margin)
        return guard

    def elsewhere(self) -> GuardRecipe:
        """The same recipe for a process with another working folder."""
        if self.model is None or not os.path.isdir(self.model):
            return self
        return replace(self, model=os.path.abspath(self.model))
