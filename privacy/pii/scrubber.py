"""Texts without personal data: what the finder finds, an action replaces, by Presidio's anonymizer."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

from privacy.pii.actions import Action, Replace
from privacy.pii.finder import Finding, PiiFinder, _unlogged


@dataclass(frozen=True)
class Scrubbed:
    """A text without its personal data, and what that was, by its place in the text before. Not shown when printed."""

    text: str = field(repr=False)
    findings: tuple[Finding, ...]


class Scrubber:
    """Finds personal data with `finder` and puts in its place what `action` says; by default <TYPE>.

    Raises:
        MissingDependencyError: as `PiiFinder`.
    """

    def __init__(self, action: Action | None = None, finder: PiiFinder | None = None) -> None:
        self.finder = finder or PiiFinder()
        self._action = action or Replace()
        from presidio_anonymizer import AnonymizerEngine, OperatorConfig

        self._anonymizer = AnonymizerEngine()  # type: ignore[no-untyped-call]
        self._operators = {
            kind: OperatorConfig("custom", {"lambda": partial(self._action, kind)}) for kind in self.finder.types
        }

    def scrub(self, text: str) -> Scrubbed:
        """The text with its personal data replaced.

        Raises:
            PiiError: as `PiiFinder.find`. What the action raises passes through.
        """
        from presidio_anonymizer import RecognizerResult

        findings = self.finder.find(text)
        if not findings:
            return Scrubbed(text, ())
        results = [RecognizerResult(each.type, each.start, each.end, each.score) for each in findings]
        with _unlogged():
            # Merging would make one value of two addresses with a space between.
            scrubbed = self._anonymizer.anonymize(text, results, self._operators, merge_entities_with_spaces=False)
        return Scrubbed(scrubbed.text, tuple(findings))
