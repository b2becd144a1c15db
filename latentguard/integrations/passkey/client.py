"""The client's side: prompts and concepts to messages that a blind guard takes, and its verdicts back to words."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from latentguard.bank import checked_concept
from latentguard.errors import ConceptError, PromptError, WeightsError
from latentguard.guard import explanation, scorable
from latentguard.integrations.passkey.cipher import GuardCipher
from latentguard.integrations.passkey.folder import ENCODER, read_blind_folder
from latentguard.integrations.passkey.messages import EncryptedConcept, EncryptedPrompt
from latentguard.lexicon import WordRarity
from latentguard.normalize import normalize
from latentguard.reading import Contributions
from latentguard.records import ConceptEntry
from latentguard.verdict import Explanation
from privacy.passkey import PassKey


class BlindClient:
    """Encrypts prompts for a blind guard with the passkey.

    ::

        client = BlindClient("blind", PassKey.from_file("passkey.txt"), concepts=["beheading"])
        message = client.encrypt("a photo of a beheading").as_json()
        client.reveal(verdict.concept)      # "beheading"; for labels of the `concepts` given, and of their categories
    """

    def __init__(
        self,
        folder: str | Path,
        passkey: PassKey,
        *,
        original: str = "minilm-l6",
        concepts: Iterable[ConceptEntry | str] = (),
        rarity: WordRarity | None = None,
    ) -> None:
        """folder: the blind folder, of which blind.json and encoder/passkey.json are enough. original: the name of the
        plain encoder, whose tokenizer is read. concepts: names to know again in verdicts. rarity: the weights' table of
        words (`weights.heads.rarity`), which only encrypting concepts takes.

        Raises:
            WeightsError: the folder is no blind one.
            EncoderError: there is no such plain encoder.
            privacy.errors.PasskeyError: the passkey is another one, or the plain encoder another model.
        """
        self._described = read_blind_folder(folder)
        self._limits = self._described.limits
        self._cipher = GuardCipher(original, passkey, Path(folder) / ENCODER)
        if self._cipher.vocabulary != self._limits.vocabulary:
            raise WeightsError(f"{folder}: its blind.json and its encoder don't belong together")
        self._rarity = rarity
        self._names: dict[str, str] = {}
        for concept in concepts:
            self._remember(ConceptEntry(concept) if isinstance(concept, str) else concept)

    def encrypt(self, prompt: str) -> EncryptedPrompt:
        """The message for one prompt.

        Raises:
            PromptError: as :meth:`latentguard.LatentGuard.check`.
        """
        text = scorable(prompt, 0)
        ids, _ = self._cipher.ids(text)
        forms = self._cipher.text_forms(text) if self._limits.words else None
        return EncryptedPrompt(self._limits.vocabulary, tuple(ids), forms)

    def encrypt_concept(
        self, name: str, *, category: str | None = None, threshold: float | None = None
    ) -> EncryptedConcept:
        """The message for one concept, which :meth:`reveal` knows from now on.

        Raises:
            ConceptError: the name is empty or too long, or the client was made without ``rarity`` and needs it.
        """
        entry = ConceptEntry(name, category, threshold)
        encrypted = encrypted_concept(self._cipher, entry, self._limits.longest_name, self._rarity_of_words())
        self._remember(entry)
        return encrypted

    def concept(self, name: str) -> str:
        """The label of a concept, by which a server removes it."""
        return self._cipher.concept(name)

    def category(self, name: str) -> str:
        """The label of a category, for a server's policy."""
        return self._cipher.category(name)

    def reveal(self, label: str) -> str:
        """The name of a concept or category from its label; ConceptError if it is none that this client knows."""
        if label not in self._names:
            raise ConceptError("the label is of no concept or category that this client was told of")
        return self._names[label]

    def explain(self, prompt: str, label: str, threshold: float, parts: Contributions) -> Explanation:
        """What :meth:`BlindGuard.contributions` gave for a prompt of this client, by word.

        Raises:
            PromptError: the parts aren't those of this prompt.
            ConceptError: the label is none that this client knows.
        """
        text = scorable(prompt, 0)
        windows = self._described.settings.windows(*self._cipher.ids(text))
        words = len(self._cipher.text_forms(text).words)
        if (
            not 0 <= parts.window < len(windows)
            or len(parts.positions) != len(windows[parts.window].ids)
            or not all(0 <= word < words for word in parts.words)
        ):
            raise PromptError("the contributions aren't those of this prompt")
        return explanation(parts, text, windows[parts.window], self.reveal(label), threshold)

    def _remember(self, concept: ConceptEntry) -> None:
        self._names.setdefault(self.concept(concept.name), concept.name)
        if concept.category is not None:
            self._names.setdefault(self.category(concept.category), concept.category)

    def _rarity_of_words(self) -> WordRarity | None:
        if self._limits.words and self._rarity is None:
            raise ConceptError("a concept's words need the table of rarities: give the client the weights' `rarity`")
        return self._rarity if self._limits.words else None


def encrypted_concept(
    cipher: GuardCipher, concept: ConceptEntry, longest: int, rarity: WordRarity | None
) -> EncryptedConcept:
    """A concept of at most ``longest`` ids, encrypted; without the hashes of its words where ``rarity`` is None."""
    entry = checked_concept(concept)
    ids, _ = cipher.ids(normalize(entry.name))
    if len(ids) > longest:
        raise ConceptError(f"a concept is longer than the {longest} tokens that the encoder's window holds")
    return EncryptedConcept(
        cipher.vocabulary,
        cipher.concept(entry.name),
        None if entry.category is None else cipher.category(entry.category),
        entry.threshold,
        tuple(ids),
        None if rarity is None else cipher.name_forms(entry.name, rarity),
    )
