"""Texts to encrypted ids and keyed hashes: all that a passkey does to what a guard reads."""

from __future__ import annotations

import hashlib
from pathlib import Path

from tokenizers import Tokenizer

from latentguard.bank import concept_key
from latentguard.encoders.embedded import NAME, model_folder
from latentguard.encoders.tokenization import WindowTokenizer
from latentguard.errors import EncoderError, MissingDependencyError
from latentguard.integrations.passkey.messages import HASH_BYTES
from latentguard.lexicon import Form, NameForms, TextForms, WordRarity

try:
    import cryptography  # noqa: F401
    import transformers  # noqa: F401
except ImportError as error:
    raise MissingDependencyError(
        "a passkey needs cryptography and transformers: pip install 'latentguard[privacy,transformers]'"
    ) from error

from privacy.passkey import PassKey, PasskeyClient
from privacy.passkey.keys import subkeys
from privacy.passkey.tokenizer_files import load_tokenizer

# What a hash is of, so that equal texts of two kinds have different hashes: BLAKE2b's person, 16 bytes at most.
_FORMS: dict[Form, bytes] = {"singular": b"lg word singular", "stem": b"lg word stem", "family": b"lg word family"}
_CONCEPT, _CATEGORY = b"lg concept label", b"lg category name"


class GuardCipher:
    """Encrypts what a guard over a converted encoder reads.

    Token ids go through the converted vocabulary. Forms of words, concepts' names and categories become keyed BLAKE2b
    hashes (RFC 7693) of 16 bytes, as hex digits, under a key that the model's conversion gave no other use for.

    Attributes:
        vocabulary: the check value in passkey.json, which tells this encrypted vocabulary from others.
        rows: number of token embeddings.
        barred: the special ids that no text gives.
    """

    def __init__(self, original: str, passkey: PassKey, converted: str | Path) -> None:
        """original: the plain encoder, "minilm-l6" or "hf:ID" or "hf:FOLDER"; its tokenizer alone is read. converted:
        the converted folder, or its passkey.json.

        Raises:
            EncoderError: there is no such encoder.
            privacy.errors.PasskeyError: wrong passkey, a tokenizer of another model, or no whole conversion.
        """
        tokenizer = load_tokenizer(plain_folder(original))
        self._client = PasskeyClient(tokenizer, passkey, converted)
        record = self._client.record
        self._key = subkeys(passkey, record.stretching).words
        self.vocabulary, self.rows = record.check, record.rows
        self.barred = frozenset(record.special) - {tokenizer.unk_token_id}
        # Windows are cut by whoever scores, after encryption; the limit here has no meaning.
        self._tokenizer = WindowTokenizer(Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()), window=2**31)
        self.barred |= {*self._tokenizer.prefix, *self._tokenizer.suffix}

    def ids(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """The encrypted ids of a normalised text, without special tokens, and for each its characters in the text."""
        ids, offsets = self._tokenizer.tokens(text)
        return self._client.encrypted_ids(ids).tolist(), offsets

    def text_forms(self, text: str) -> TextForms:
        """The hashed forms of a normalised text's words."""
        return TextForms.of(text).mapped(self._form)

    def name_forms(self, name: str, rarity: WordRarity) -> NameForms:
        """The hashed forms of a concept's name."""
        return NameForms.of(name, rarity).mapped(self._form)

    def concept(self, name: str) -> str:
        """The label of a concept, the same however its name is spaced or capitalised."""
        return self._hash(concept_key(name), _CONCEPT)

    def category(self, name: str) -> str:
        """The label of a category."""
        return self._hash(name, _CATEGORY)

    def _form(self, form: Form, text: str) -> str:
        return self._hash(text, _FORMS[form])

    def _hash(self, text: str, person: bytes) -> str:
        content = text.encode("utf-8", "surrogatepass")
        return hashlib.blake2b(content, digest_size=HASH_BYTES, key=self._key, person=person).hexdigest()


def plain_folder(encoder: str) -> str:
    """Where the model of a plain encoder's name lies; EncoderError for one that can't be converted."""
    kind, _, place = encoder.partition(":")
    if encoder == NAME:
        return str(model_folder("config.json", "tokenizer.json", "model.safetensors"))
    if kind == "hf" and place:
        return place
    raise EncoderError(f"{encoder}: can't be converted; only {NAME} and hf: encoders can")
