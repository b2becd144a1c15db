"""An encrypted vocabulary: keyed names for its entries, a keyed order of its ids, and a tokenizer that knows no other.

Each entry's name is its keyed BLAKE2b digest (RFC 7693), so nobody without the key can tell which entry it stands for,
nor find out by trying entries. Special tokens keep their names and ids: models and tokenizers treat them apart by both.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from privacy.errors import ConversionError
from privacy.passkey.keystream import Keystream

if TYPE_CHECKING:
    from privacy.passkey.keys import Subkeys

TOKEN_BYTES = 16

_PERSON_TOKEN = b"lg passkey token"
_PERSON_UNUSED = b"lg passkey empty"
_PERSON_VOCABULARY = b"lg passkey vocab"
# Named as the tokenizer's unknown token and no entry of it, so that a token nobody gave out is an error there, too.
_NO_TOKEN = "[not a token of this vocabulary]"


@dataclass(frozen=True)
class PlainVocabulary:
    """What of a tokenizer its encryption needs.

    entries: each id's token, None where an id has none; there are as many as the model has embeddings. special: the
    ids that keep name and place. template: the tokenizer's post-processor, which adds special tokens, as its JSON.
    """

    entries: tuple[str | None, ...]
    special: frozenset[int]
    template: dict[str, Any] | None

    @classmethod
    def of(cls, tokenizer: Any, rows: int) -> PlainVocabulary:
        """The vocabulary of a transformers tokenizer, for a model with `rows` embeddings.

        Raises:
            ConversionError: it runs in Python, without the tokenizers library; or has ids that the model lacks.
        """
        if not getattr(tokenizer, "is_fast", False):
            raise ConversionError(
                f"{type(tokenizer).__name__}: is a tokenizer in Python alone; one of the tokenizers library is needed"
            )
        vocabulary: dict[str, int] = tokenizer.get_vocab()
        if (highest := max(vocabulary.values(), default=-1)) >= rows:
            raise ConversionError(f"the tokenizer's ids go up to {highest}, but the model has {rows} embeddings")
        entries: list[str | None] = [None] * rows
        for token, place in vocabulary.items():
            entries[place] = token
        backend = json.loads(tokenizer.backend_tokenizer.to_str())
        template = backend["post_processor"]
        special = {*tokenizer.all_special_ids, *_template_ids(template)}
        special |= {added["id"] for added in backend["added_tokens"] if added["special"]}
        return cls(tuple(entries), frozenset(each for each in special if entries[each] is not None), template)

    def digest(self, key: bytes) -> str:
        """A keyed digest (hex) by which the same vocabulary is known again."""
        content = json.dumps([self.entries, sorted(self.special)]).encode()
        return hashlib.blake2b(content, digest_size=TOKEN_BYTES, key=key, person=_PERSON_VOCABULARY).hexdigest()


def encrypted_token(key: bytes, token: bytes | str) -> str:
    """The name of an entry in the encrypted vocabulary: keyed BLAKE2b of its UTF-8, 16 bytes as 32 hex digits."""
    return _named(key, token.encode("utf-8", "surrogatepass") if isinstance(token, str) else token, _PERSON_TOKEN)


def permutation(key: bytes, size: int, fixed: Iterable[int]) -> NDArray[np.int64]:
    """The new id [size] of each id: `fixed` ones stay, the others are shuffled among themselves.

    Their order is that of 64-bit numbers of the keystream; it is the same on all platforms.
    """
    kept = np.zeros(size, dtype=bool)
    kept[list(fixed)] = True
    places = np.flatnonzero(~kept)
    new = np.arange(size, dtype=np.int64)
    new[places] = places[np.argsort(Keystream(key).uint64s(len(places)), kind="stable")]
    return new


@dataclass(frozen=True)
class EncryptedVocabulary:
    """Both directions between plain and encrypted ids, and the encrypted ids' names.

    new [V]: the encrypted id of each plain one. plain [V]: the inverse. tokens: the name of each encrypted id.
    """

    new: NDArray[np.int64]
    plain: NDArray[np.int64]
    tokens: tuple[str, ...]

    @classmethod
    def of(cls, vocabulary: PlainVocabulary, keys: Subkeys) -> EncryptedVocabulary:
        """Encrypts `vocabulary`; ids without a token get a name as well, so that they don't show."""
        new = permutation(keys.permutation, len(vocabulary.entries), vocabulary.special)
        plain = np.argsort(new)
        return cls(new, plain, tuple(_name(vocabulary, keys.vocabulary, int(place)) for place in plain))


def tokenizer_json(tokens: Sequence[str], special: Iterable[int], template: dict[str, Any] | None) -> str:
    """The encrypted tokenizer for the tokenizers library: splits at white space, and looks names up.

    A name that it doesn't know is an error, as there is no unknown token that it might become.
    """
    added = [
        {
            "id": place,
            "content": tokens[place],
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for place in sorted(special)
    ]
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": template,
        "decoder": None,
        "model": {
            "type": "WordLevel",
            "vocab": {token: place for place, token in enumerate(tokens)},
            "unk_token": _NO_TOKEN,
        },
    }
    return json.dumps(content, ensure_ascii=False, indent=1) + "\n"


def _named(key: bytes, content: bytes, person: bytes) -> str:
    return hashlib.blake2b(content, digest_size=TOKEN_BYTES, key=key, person=person).hexdigest()


def _name(vocabulary: PlainVocabulary, key: bytes, place: int) -> str:
    token = vocabulary.entries[place]
    if token is None:
        return _named(key, place.to_bytes(8, "little"), _PERSON_UNUSED)
    return token if place in vocabulary.special else encrypted_token(key, token)


def _template_ids(template: dict[str, Any] | None) -> set[int]:
    """The ids that a post-processor adds: of a TemplateProcessing, a BertProcessing, or a sequence of them."""
    if template is None:
        return set()
    ids = {template[name][1] for name in ("sep", "cls") if name in template}
    if template["type"] == "TemplateProcessing":
        ids |= {each for token in template["special_tokens"].values() for each in token["ids"]}
    for part in template.get("processors", ()):
        ids |= _template_ids(part)
    return ids
