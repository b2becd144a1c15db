"""The client's half: text to encrypted ids and back, with the passkey and the original tokenizer.

    client = PasskeyClient("all-MiniLM-L6-v2", PassKey.from_file("passkey.txt"), "encrypted")
    inputs = client.encrypt_batch(["what nobody else should read"])     # what the server's model takes
    client.decrypt(generated_ids)                                       # what an encoder-decoder answered

The server needs the converted folder and transformers, and neither this nor a key.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from privacy.errors import ConversionError, TokenizerMismatchError, UnknownTokenError
from privacy.passkey.keys import PassKey, subkeys
from privacy.passkey.record import read_record
from privacy.passkey.tokenizer_files import load_tokenizer
from privacy.passkey.vocabulary import EncryptedVocabulary, PlainVocabulary

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class EncryptedText:
    """A text, or a pair, as the server's model reads it.

    ids: encrypted, special tokens included. tokens: their names in the encrypted vocabulary. parts: for each, 0 if it
    is of the text, 1 if of its pair, None if the tokenizer added it.
    """

    ids: tuple[int, ...]
    tokens: tuple[str, ...]
    parts: tuple[int | None, ...]


class PasskeyClient:
    """Encrypts texts for a converted model, and decrypts what it generates.

    tokenizer: the original one's folder or hub name, or a loaded one of transformers. record: the converted folder, or
    a copy of its passkey.json alone.

    Raises:
        ConversionError: the record is missing or damaged, or the tokenizer can't be read.
        WrongPasskeyError: the passkey is another one.
        TokenizerMismatchError: the tokenizer is of another model.
    """

    def __init__(self, tokenizer: Any, passkey: PassKey, record: str | Path) -> None:
        self.record = read_record(record)
        keys = subkeys(passkey, self.record.stretching)
        self.record.verify(keys)
        self._tokenizer = load_tokenizer(tokenizer) if isinstance(tokenizer, str | Path) else tokenizer
        self._vocabulary = EncryptedVocabulary.of(self._plain_vocabulary(keys.words), keys)
        self._ids = {token: place for place, token in enumerate(self._vocabulary.tokens)}

    def encrypt(self, text: str, pair: str | None = None) -> EncryptedText:
        """One text, or a pair of them, whole: it is not cut to the model's length."""
        encoding = self._tokenizer(text, pair, truncation=False, verbose=False)
        ids = self.encrypted_ids(encoding["input_ids"]).tolist()
        tokens = tuple(self._vocabulary.tokens[each] for each in ids)
        return EncryptedText(tuple(ids), tokens, tuple(encoding.sequence_ids()))

    def encrypt_batch(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        *,
        padding: bool | str = True,
        truncation: bool | str = False,
        max_length: int | None = None,
    ) -> dict[str, Tensor]:
        """What a model takes: `input_ids` and `attention_mask` [B, L] int64, and `token_type_ids` if the model has any.

        padding, truncation, max_length: as for a transformers tokenizer.
        """
        import torch

        encoded = self._tokenizer(
            list(texts),
            None if pairs is None else list(pairs),
            padding=padding,
            truncation=truncation,
            max_length=max_length,
            return_tensors="pt",
        )
        return {**encoded, "input_ids": torch.from_numpy(self.encrypted_ids(encoded["input_ids"]))}

    def encrypted_ids(self, ids: ArrayLike) -> NDArray[np.int64]:
        """The encrypted ids of plain ones, in an array of the same shape. Raises UnknownTokenError as `plain_ids`."""
        return self._vocabulary.new[self._checked(ids)]

    def plain_ids(self, ids: ArrayLike) -> NDArray[np.int64]:
        """The plain ids of encrypted ones, in an array of the same shape.

        Raises:
            UnknownTokenError: one is no id of this vocabulary.
        """
        return self._vocabulary.plain[self._checked(ids)]

    def decrypt(self, encrypted: str | ArrayLike) -> str:
        """The text of encrypted ids [L], or of their names with white space between, less special tokens.

        Raises:
            UnknownTokenError: an id or name isn't in the vocabulary.
        """
        ids = self.ids_of(encrypted) if isinstance(encrypted, str) else encrypted
        text: str = self._tokenizer.decode(self.plain_ids(ids).reshape(-1).tolist(), skip_special_tokens=True)
        return text

    def text_of(self, encrypted: EncryptedText, part: Literal[0, 1] = 0) -> str:
        """The names that the server's tokenizer turns into the same ids: those of the text, or of its pair (`part` 1).

        The special tokens around them are left out, as that tokenizer adds its own.
        """
        return " ".join(token for token, where in zip(encrypted.tokens, encrypted.parts, strict=True) if where == part)

    def ids_of(self, names: str) -> list[int]:
        """The encrypted ids of tokens' names with white space between.

        Raises:
            UnknownTokenError: the vocabulary has no such name; the message tells which one by its place.
        """
        ids = []
        for place, name in enumerate(names.split(), start=1):
            if name not in self._ids:
                raise UnknownTokenError(f"token {place} is not in this vocabulary")
            ids.append(self._ids[name])
        return ids

    def _checked(self, ids: ArrayLike) -> NDArray[np.int64]:
        array = np.asarray(ids)
        if array.size == 0:
            return array.astype(np.int64)
        if not np.issubdtype(array.dtype, np.integer):
            raise UnknownTokenError("ids are whole numbers")
        outside = np.flatnonzero((array < 0) | (array >= self.record.rows))
        if outside.size:
            number = array.reshape(-1)[outside[0]]
            raise UnknownTokenError(f"id {number} is not in this vocabulary, whose ids end at {self.record.rows - 1}")
        return array.astype(np.int64)

    def _plain_vocabulary(self, key: bytes) -> PlainVocabulary:
        """Raises TokenizerMismatchError unless it is the one that the record's digest was made of."""
        mismatch = TokenizerMismatchError("the tokenizer is not the one of the model that was converted")
        try:
            plain = PlainVocabulary.of(self._tokenizer, self.record.rows)
        except ConversionError:
            raise mismatch from None
        if not hmac.compare_digest(plain.digest(key), self.record.vocabulary):
            raise mismatch
        return plain
