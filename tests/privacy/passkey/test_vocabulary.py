"""Vocabularies are encrypted by key: names, order, and the tokenizer that is left."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from privacy.errors import ConversionError, WrongPasskeyError
from privacy.passkey import PassKey, Stretching
from privacy.passkey.keys import Subkeys, subkeys
from privacy.passkey.keystream import Keystream
from privacy.passkey.record import read_record
from privacy.passkey.vocabulary import (
    EncryptedVocabulary,
    PlainVocabulary,
    encrypted_token,
    permutation,
    tokenizer_json,
)

KEY, OTHER = bytes(range(32)), bytes(32)


def tokenizer_of(folder: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(folder)


def test_the_keystream_is_rfc_8439_s() -> None:
    # Appendix A.1, test vector 1: key, nonce and counter of zeros.
    expected = bytes.fromhex("76b8e0ada0f13d90405d6ae55386bd28")
    assert Keystream(bytes(32)).uint64s(2).astype("<u8").tobytes() == expected


def test_a_keystream_goes_on_where_it_stopped() -> None:
    parts = Keystream(KEY)
    assert np.array_equal(np.concatenate([parts.uint64s(3), parts.uint64s(5)]), Keystream(KEY).uint64s(8))


def test_a_token_s_name_is_keyed_blake2b() -> None:
    expected = hashlib.blake2b("größe".encode(), digest_size=16, key=KEY, person=b"lg passkey token").hexdigest()
    assert encrypted_token(KEY, "größe") == encrypted_token(KEY, "größe".encode()) == expected
    assert encrypted_token(OTHER, "größe") != expected


@given(st.integers(1, 200), st.data())
def test_a_permutation_moves_all_but_the_fixed_ids_among_themselves(size: int, data: st.DataObject) -> None:
    fixed = data.draw(st.sets(st.integers(0, size - 1)))
    new = permutation(KEY, size, fixed)
    assert sorted(new) == list(range(size))
    assert all(new[place] == place for place in fixed)


def test_a_permutation_is_the_same_on_every_platform() -> None:
    assert permutation(KEY, 12, {0, 5}).tolist() == [0, 9, 11, 8, 2, 5, 7, 1, 4, 6, 3, 10]


def test_another_key_gives_an_unrelated_permutation() -> None:
    agreeing = np.count_nonzero(permutation(KEY, 30_000, ()) == permutation(OTHER, 30_000, ()))
    assert agreeing < 12  # one is expected; twelve or more come up once in a billion keys


def test_all_orders_are_equally_likely() -> None:
    keys = (hashlib.sha256(number.to_bytes(4, "big")).digest() for number in range(6000))
    orders = [tuple(permutation(key, 3, ()).tolist()) for key in keys]
    counts = [orders.count(order) for order in itertools.permutations(range(3))]
    assert sum((count - 1000) ** 2 / 1000 for count in counts) < 20.5  # chi square with 5 degrees: once in a thousand


def test_special_tokens_stay_and_everything_else_is_renamed(folder_of: Callable[[str], Path], keys: Subkeys) -> None:
    plain = PlainVocabulary.of(tokenizer_of(folder_of("bert")), 199)
    encrypted = EncryptedVocabulary.of(plain, keys)
    names = {place: plain.entries[place] for place in sorted(plain.special)}
    assert names == {0: "[PAD]", 1: "[UNK]", 2: "[CLS]", 3: "[SEP]", 4: "[MASK]"}
    assert all(encrypted.tokens[place] == name for place, name in names.items())
    assert not {*encrypted.tokens[5:]} & {*plain.entries}
    assert "glockenspiel" in plain.entries  # added by the user, and no special token
    assert np.array_equal(encrypted.new[encrypted.plain], np.arange(199))


def test_ids_without_a_token_get_names_like_the_others(folder_of: Callable[[str], Path], keys: Subkeys) -> None:
    plain = PlainVocabulary.of(tokenizer_of(folder_of("bert")), 199)
    assert plain.entries[192:] == (None,) * 7
    tokens = EncryptedVocabulary.of(plain, keys).tokens
    assert len({*tokens}) == 199
    assert {len(token) for token in tokens[5:]} == {32}


def test_a_vocabulary_is_known_again_by_its_digest(folder_of: Callable[[str], Path]) -> None:
    tokenizer = tokenizer_of(folder_of("bert"))
    plain = PlainVocabulary.of(tokenizer, 199)
    assert plain.digest(KEY) == PlainVocabulary.of(tokenizer, 199).digest(KEY) != plain.digest(OTHER)
    tokenizer.add_tokens(["accordion"])
    assert PlainVocabulary.of(tokenizer, 199).digest(KEY) != plain.digest(KEY)


def test_a_tokenizer_with_more_ids_than_the_model_is_refused(folder_of: Callable[[str], Path]) -> None:
    with pytest.raises(ConversionError, match="ids go up to 191, but the model has 100 embeddings"):
        PlainVocabulary.of(tokenizer_of(folder_of("bert")), 100)


def test_a_tokenizer_in_python_alone_is_refused() -> None:
    with pytest.raises(ConversionError, match="ByT5Tokenizer: is a tokenizer in Python alone"):
        PlainVocabulary.of(transformers.ByT5Tokenizer(), 400)


def test_the_encrypted_tokenizer_refuses_what_it_does_not_know(keys: Subkeys, folder_of: Callable[[str], Path]) -> None:
    plain = PlainVocabulary.of(tokenizer_of(folder_of("bert")), 199)
    tokens = EncryptedVocabulary.of(plain, keys).tokens
    server = Tokenizer.from_str(tokenizer_json(tokens, plain.special, plain.template))
    assert server.encode(f"{tokens[9]} {tokens[7]}").ids == [2, 9, 7, 3]
    for unknown in ("0" * 32, "drizzle"):
        with pytest.raises(Exception, match="WordLevel error: Missing"):
            server.encode(f"{tokens[9]} {unknown}")


@pytest.fixture(scope="module")
def keys(passkey: PassKey, stretching: Stretching) -> Subkeys:
    return subkeys(passkey, stretching)


class TestPublishedDerivation:
    """SentinelLMs' published code seeds its generator with the sum of the key's characters: 10,000 seeds at most."""

    SEEDS = range(10_000)

    @staticmethod
    def published(seed: int, size: int) -> list[int]:
        """A reproduction of it: the order of ids that a seed gives."""
        ids = list(range(size))
        random.Random(seed).shuffle(ids)
        return ids

    @staticmethod
    def seed_of(passkey: str) -> int:
        return sum(map(ord, passkey))

    def found(self, order: list[int]) -> list[int]:
        """The seeds that give `order`, by trying them all."""
        return [seed for seed in self.SEEDS if self.published(seed, len(order)) == order]

    def test_the_search_finds_the_published_seed(self) -> None:
        secret = "correct horse battery staple"
        assert self.found(self.published(self.seed_of(secret), 60)) == [self.seed_of(secret)]

    def test_the_search_finds_nothing_here(self, stretching: Stretching) -> None:
        passkey = PassKey.from_text("correct horse battery staple")
        order = permutation(subkeys(passkey, stretching).permutation, 60, ()).tolist()
        assert self.found(order) == []

    def test_equal_sums_of_characters_give_unrelated_orders(self, stretching: Stretching) -> None:
        texts = ("correct horse battery staple", "correct horse battery stapel")
        assert self.seed_of(texts[0]) == self.seed_of(texts[1])
        first, second = (
            permutation(subkeys(PassKey.from_text(text), stretching).permutation, 30_000, ()) for text in texts
        )
        assert np.count_nonzero(first == second) < 12

    def test_no_seed_passes_the_check_value(self, converted_of: Callable[..., Path], passkey: PassKey) -> None:
        record = read_record(converted_of("bert"))
        record.verify(subkeys(passkey, record.stretching))
        for seed in self.SEEDS:
            for guess in (seed.to_bytes(32, "big"), random.Random(seed).randbytes(32)):
                check = HKDFExpand(SHA256(), 32, b"latentguard passkey check").derive(guess)
                with pytest.raises(WrongPasskeyError):
                    record.verify(Subkeys(guess, guess, guess, guess, guess, check))

    def test_the_same_guess_would_pass_for_a_key_that_is_a_seed(self, converted_of: Callable[..., Path]) -> None:
        check = HKDFExpand(SHA256(), 32, b"latentguard passkey check").derive((2817).to_bytes(32, "big"))
        keys = Subkeys(check, check, check, check, check, check)
        read_record(converted_of("bert")).with_check(keys).verify(keys)


def test_nothing_of_the_vocabulary_is_in_the_tokenizer_but_names(
    keys: Subkeys, folder_of: Callable[[str], Path]
) -> None:
    plain = PlainVocabulary.of(tokenizer_of(folder_of("roberta")), 500)
    content = json.loads(tokenizer_json(EncryptedVocabulary.of(plain, keys).tokens, plain.special, plain.template))
    readable = {token for token in content["model"]["vocab"] if len(token) != 32}
    assert readable == {"<s>", "<pad>", "</s>", "<unk>", "<mask>"}
    assert "merges" not in content["model"]
