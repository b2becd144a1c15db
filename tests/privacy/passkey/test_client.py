"""The client encrypts and decrypts with the passkey and the original tokenizer, and refuses all others."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from passkey_models import BUILDERS, LINES, TEXTS

from privacy.errors import ConversionError, TokenizerMismatchError, UnknownTokenError, WrongPasskeyError
from privacy.passkey import PassKey, PasskeyClient, Stretching, convert

Folders = Callable[..., Path]
Clients = Callable[..., PasskeyClient]


@pytest.fixture(scope="module")
def client(client_of: Clients) -> PasskeyClient:
    return client_of("bert")


@pytest.mark.parametrize("name", BUILDERS)
def test_what_was_encrypted_is_decrypted(name: str, folder_of: Folders, client_of: Clients) -> None:
    client, plain = client_of(name), transformers.AutoTokenizer.from_pretrained(folder_of(name))
    for text in TEXTS:
        encrypted = client.encrypt(text)
        known = plain.decode(plain(text)["input_ids"], skip_special_tokens=True)
        assert known
        assert client.decrypt(encrypted.ids) == client.decrypt(client.text_of(encrypted)) == known


def test_a_text_s_tokens_are_names_of_its_ids(client: PasskeyClient) -> None:
    encrypted = client.encrypt("warm bread", "bitter [MASK]")
    assert encrypted.parts == (None, 0, 0, None, 1, 1, None)
    assert [token for token in encrypted.tokens if len(token) != 32] == ["[CLS]", "[SEP]", "[MASK]", "[SEP]"]
    assert client.ids_of(" ".join(encrypted.tokens)) == [*encrypted.ids]
    assert client.text_of(encrypted, 1).endswith(" [MASK]")


def test_a_word_has_one_name_wherever_it_stands(client: PasskeyClient) -> None:
    first, second = client.encrypt("warm bread"), client.encrypt("bread warm")
    assert first.tokens[1:3] == second.tokens[2:0:-1]


def test_another_conversion_gives_other_names_and_ids(
    client: PasskeyClient, folder_of: Folders, passkey: PassKey, tmp_path: Path
) -> None:
    convert(folder_of("bert"), tmp_path / "other", passkey, transform="none", kdf="scrypt")
    other = PasskeyClient(folder_of("bert"), passkey, tmp_path / "other").encrypt(LINES[0])
    own = client.encrypt(LINES[0])
    assert {*own.tokens} & {*other.tokens} == {"[CLS]", "[SEP]"}
    assert own.ids != other.ids


def test_a_batch_is_its_texts_one_by_one(client: PasskeyClient) -> None:
    batch = client.encrypt_batch(TEXTS)
    assert {*batch} == {"input_ids", "attention_mask", "token_type_ids"}
    for row, text in enumerate(TEXTS):
        real = batch["attention_mask"][row].bool()
        assert tuple(batch["input_ids"][row, real].tolist()) == client.encrypt(text).ids
        assert not batch["input_ids"][row, ~real].any()  # the padding token, whose id is 0


def test_a_batch_of_pairs_tells_them_apart(client: PasskeyClient) -> None:
    batch = client.encrypt_batch(TEXTS[:2], TEXTS[2:])
    assert batch["token_type_ids"].sum(dim=1).tolist() == [8, 3]


def test_a_batch_may_be_cut(client: PasskeyClient) -> None:
    batch = client.encrypt_batch(TEXTS, truncation=True, max_length=6)
    assert batch["input_ids"].shape == (4, 6)
    assert client.encrypt_batch(TEXTS, padding="max_length", max_length=40)["input_ids"].shape == (4, 40)


def test_ids_of_one_s_own_keep_their_shape(client: PasskeyClient) -> None:
    ids = np.arange(12).reshape(3, 4)
    assert np.array_equal(client.plain_ids(client.encrypted_ids(ids)), ids)
    assert client.encrypted_ids(torch.from_numpy(ids)).shape == (3, 4)
    assert client.encrypted_ids([]).shape == (0,)


@given(st.lists(st.integers(0, 198), max_size=20))
def test_plain_ids_are_the_inverse(client: PasskeyClient, ids: list[int]) -> None:
    assert client.plain_ids(client.encrypted_ids(ids)).tolist() == ids


@pytest.mark.parametrize("ids", [[199], [-100], [3, -1], [[0], [2**40]]])
def test_an_id_outside_of_the_vocabulary_is_refused(client: PasskeyClient, ids: Any) -> None:
    for use in (client.encrypted_ids, client.plain_ids, client.decrypt):
        with pytest.raises(UnknownTokenError, match="is not in this vocabulary, whose ids end at 198"):
            use(ids)


@pytest.mark.parametrize("ids", [[0.5], ["drizzle"], [True], [None]])
def test_what_is_no_id_is_refused(client: PasskeyClient, ids: Any) -> None:
    with pytest.raises(UnknownTokenError, match="ids are whole numbers"):
        client.plain_ids(ids)


@pytest.mark.parametrize("unknown", ["0" * 32, "drizzle", "[UNKNOWN]"])
def test_an_unknown_name_is_refused_without_quoting_it(client: PasskeyClient, unknown: str) -> None:
    known = client.text_of(client.encrypt("warm"))
    with pytest.raises(UnknownTokenError, match="token 2 is not in this vocabulary") as caught:
        client.decrypt(f"{known} {unknown}")
    assert unknown not in str(caught.value)


def test_ids_without_a_token_decrypt_to_nothing(client: PasskeyClient) -> None:
    assert client.decrypt(client.encrypted_ids([195])) == ""


def test_another_passkey_is_refused(folder_of: Folders, converted_of: Folders) -> None:
    secret = "another passkey altogether"
    with pytest.raises(WrongPasskeyError, match=r"the passkey is wrong, or passkey\.json was changed") as caught:
        PasskeyClient(folder_of("bert"), PassKey.from_text(secret), converted_of("bert"))
    assert secret not in str(caught.value)


def test_passkey_json_alone_is_enough(
    client: PasskeyClient, folder_of: Folders, converted_of: Folders, passkey: PassKey, tmp_path: Path
) -> None:
    copy = shutil.copy(converted_of("bert") / "passkey.json", tmp_path / "copy.json")
    assert PasskeyClient(folder_of("bert"), passkey, copy).encrypt(LINES[1]) == client.encrypt(LINES[1])


def test_a_loaded_tokenizer_is_taken_as_well(
    client: PasskeyClient, folder_of: Folders, converted_of: Folders, passkey: PassKey
) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder_of("bert"))
    assert PasskeyClient(tokenizer, passkey, converted_of("bert")).encrypt(LINES[1]) == client.encrypt(LINES[1])


@pytest.mark.parametrize("changes", [{"rows": 198}, {"special": [0]}, {"vocabulary": "0" * 32}])
def test_a_changed_record_is_refused(
    folder_of: Folders, converted_of: Folders, passkey: PassKey, tmp_path: Path, changes: dict[str, Any]
) -> None:
    content = json.loads((converted_of("bert") / "passkey.json").read_text())
    (tmp_path / "passkey.json").write_text(json.dumps({**content, **changes}))
    with pytest.raises(WrongPasskeyError):
        PasskeyClient(folder_of("bert"), passkey, tmp_path)


@pytest.mark.parametrize("name", ["distilbert-lm", "roberta", "t5", "clip"])
def test_the_tokenizer_of_another_model_is_refused(
    name: str, folder_of: Folders, converted_of: Folders, passkey: PassKey
) -> None:
    with pytest.raises(TokenizerMismatchError, match="not the one of the model that was converted"):
        PasskeyClient(folder_of(name), passkey, converted_of("bert"))


def test_the_encrypted_tokenizer_is_not_the_original(converted_of: Folders, passkey: PassKey) -> None:
    with pytest.raises(TokenizerMismatchError):
        PasskeyClient(converted_of("bert"), passkey, converted_of("bert"))


def test_a_tokenizer_with_a_token_added_later_is_refused(
    folder_of: Folders, converted_of: Folders, passkey: PassKey
) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder_of("bert"))
    tokenizer.add_tokens(["accordion"])
    with pytest.raises(TokenizerMismatchError):
        PasskeyClient(tokenizer, passkey, converted_of("bert"))


def test_a_half_converted_folder_is_refused(folder_of: Folders, passkey: PassKey) -> None:
    with pytest.raises(ConversionError, match="is no whole converted model"):
        PasskeyClient(folder_of("bert"), passkey, folder_of("bert"))


def test_a_place_without_a_tokenizer_is_named(converted_of: Folders, passkey: PassKey, tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="its tokenizer can't be read") as caught:
        PasskeyClient(tmp_path, passkey, converted_of("bert"))
    assert "\n" not in str(caught.value)


def test_one_stretching_serves_several_models(
    folder_of: Folders, passkey: PassKey, stretching: Stretching, client: PasskeyClient, tmp_path: Path
) -> None:
    convert(folder_of("bert-classifier"), tmp_path / "second", passkey, transform="none", kdf=stretching)
    second = PasskeyClient(folder_of("bert-classifier"), passkey, tmp_path / "second")
    assert second.encrypt(LINES[2]) == client.encrypt(LINES[2])
