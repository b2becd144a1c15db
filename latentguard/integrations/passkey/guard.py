"""The server's side: LatentGuard over a converted encoder, for prompts that the server can't read."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from latentguard.errors import MessageError, PromptError
from latentguard.guard import LatentGuard
from latentguard.integrations.passkey.encoder import EncoderSettings, converted_encoder
from latentguard.integrations.passkey.folder import ENCODER, load_blind_folder
from latentguard.integrations.passkey.messages import EncryptedConcept, EncryptedPrompt, Limits
from latentguard.policy import Policy
from latentguard.reading import Contributions, ReadConcept, ReadPrompt
from latentguard.records import ConceptEntry
from latentguard.verdict import Verdict


class BlindGuard:
    """Blocks encrypted prompts near blacklisted concepts; it needs no key, and neither prompts nor concepts are read.

    ::

        guard = BlindGuard.from_pretrained("blind")
        verdict = guard.check(message)              # an EncryptedPrompt, or its JSON as it came in
        verdict.blocked, verdict.score, verdict.concept      # the concept's name is a keyed hash

    Scoring is that of :class:`latentguard.LatentGuard`. What isn't exactly an encrypted prompt for this guard raises
    :class:`latentguard.errors.MessageError`, and is never passed as allowed.

    Attributes:
        guard: the LatentGuard that scores; its bank lists labels, its policy counts.
        limits: what messages may hold.
    """

    def __init__(self, guard: LatentGuard, settings: EncoderSettings, limits: Limits) -> None:
        self.guard, self.limits, self._settings = guard, limits, settings

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        policy: Policy | None = None,
        device: str = "auto",
        precision: str | None = None,
    ) -> BlindGuard:
        """The guard of a blind folder.

        Args:
            folder: what `python -m latentguard blind` wrote.
            policy: thresholds, by hashes of categories too, instead of the folder's one threshold.
            device, precision: as for :meth:`latentguard.LatentGuard.from_pretrained`.

        Raises:
            WeightsError: the folder isn't whole, was changed, or is none of these.
            EncoderError: the encoder can't be loaded.
        """
        described, weights, concepts = load_blind_folder(folder)
        config = weights.config
        encoder = converted_encoder(
            Path(folder) / ENCODER, described.settings, device=device, precision=precision, layers=config.layers
        )
        guard = LatentGuard(encoder, weights.mapping, (), policy or Policy(config.threshold), weights.heads)
        blind = cls(guard, described.settings, described.limits)
        guard.concepts.extend_read([blind._read_concept(concept) for concept in concepts])
        return blind

    def check(self, prompt: EncryptedPrompt | str | bytes) -> Verdict:
        """The verdict on one encrypted prompt, whose ``concept`` and ``category`` are labels and ``prompt`` is empty.

        Raises:
            MessageError: it is no encrypted prompt for this guard.
            ConceptError, PolicyError, EncoderError: as :meth:`latentguard.LatentGuard.check`.
        """
        return self.check_batch([prompt])[0]

    def check_batch(self, prompts: Iterable[EncryptedPrompt | str | bytes]) -> list[Verdict]:
        """The verdicts on encrypted prompts, in order; errors as :meth:`check`, naming the prompt's place."""
        return self.guard.check_read(self._read(prompt, place) for place, prompt in enumerate(prompts))

    def contributions(self, prompt: EncryptedPrompt | str | bytes, concept: str) -> Contributions:
        """What each position and word of an encrypted prompt adds to its score against the concept of a label.

        :meth:`BlindClient.explain` makes words of it. Errors as :meth:`check`; ConceptError for an unknown label.
        """
        return self.guard.contributions(self._read(prompt, 0), concept)

    def add(self, concept: EncryptedConcept | str | bytes) -> None:
        """Adds an encrypted concept to the bank; from now on it blocks as well, and nothing is trained.

        Raises:
            MessageError: it is no encrypted concept for this guard.
            ConceptError: the bank has it already.
        """
        message = concept.as_json() if isinstance(concept, EncryptedConcept) else concept
        self.guard.concepts.extend_read([self._read_concept(EncryptedConcept.from_json(message, self.limits))])

    def remove(self, label: str) -> ConceptEntry:
        """Takes the concept of a label out of the bank and returns it; ConceptError if there is none."""
        return self.guard.concepts.remove(label)

    def _read(self, prompt: EncryptedPrompt | str | bytes, place: int) -> ReadPrompt:
        # What was made in this process is held to the same as what came over a network.
        message = prompt.as_json() if isinstance(prompt, EncryptedPrompt) else prompt
        if not isinstance(message, str | bytes):
            raise PromptError(f"prompt {place + 1}: expected a message, got {type(message).__name__}")
        try:
            read = EncryptedPrompt.from_json(message, self.limits)
        except MessageError as error:
            raise MessageError(f"prompt {place + 1}: {error}") from None
        return ReadPrompt(self._settings.windows(read.ids), read.forms)

    def _read_concept(self, concept: EncryptedConcept) -> ReadConcept:
        entry = ConceptEntry(concept.label, concept.category, concept.threshold)
        return ReadConcept(entry, self._settings.windows(concept.ids)[0], concept.forms)
