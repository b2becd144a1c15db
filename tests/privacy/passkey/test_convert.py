"""Converted models compute on encrypted ids what the plain ones compute on plain ids, and hold nothing readable."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from passkey_models import BUILDERS, ENCODERS, GENERATORS, LINES, PASSKEY, TEXTS
from safetensors.torch import load_file, save_file

from latentguard.encoders.embedded import model_folder
from privacy.errors import ConversionError, DataError
from privacy.passkey import PassKey, PasskeyClient, Stretching, check_folder, convert
from privacy.passkey.keys import subkeys
from privacy.passkey.record import read_record
from privacy.passkey.transforms import Transform

Folders = Callable[..., Path]
MAPPED = ("glide", "orthogonal")
# Names of fields and functions in the files' formats that happen to hold an entry of the small vocabularies.
FORMAT_WORDS = (b"intermediate", b"template", b"carried", b"quick_gelu", b"shared", b"latentguard")


def load(folder: Path) -> Any:
    """The model as a server loads it: by its configuration, with transformers alone."""
    config = transformers.AutoConfig.from_pretrained(folder)
    kind = getattr(transformers, config.architectures[0])
    model, report = kind.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    return model.eval()


def plain_batch(folder: Path) -> dict[str, torch.Tensor]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    batch: dict[str, torch.Tensor] = {**tokenizer(list(TEXTS), padding=True, return_tensors="pt")}
    return batch


@torch.no_grad()
def run(model: Any, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in model(**batch).items() if isinstance(value, torch.Tensor)}


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_computes_the_same(
    name: str, folder_of: Folders, converted_of: Folders, client_of: Callable[..., PasskeyClient]
) -> None:
    client = client_of(name)
    expected = run(load(folder_of(name)), plain_batch(folder_of(name)))
    found = run(load(converted_of(name)), client.encrypt_batch(TEXTS))
    if name.endswith("lm"):
        new = torch.from_numpy(client.encrypted_ids(np.arange(client.record.rows)))
        torch.testing.assert_close(found["logits"][..., new], expected["logits"], atol=1e-5, rtol=1e-5)
    else:
        assert found.keys() == expected.keys()
        for each in expected:
            assert torch.equal(found[each], expected[each])


@pytest.mark.parametrize("name", GENERATORS)
def test_an_encoder_decoder_generates_the_same(
    name: str, folder_of: Folders, converted_of: Folders, client_of: Callable[..., PasskeyClient]
) -> None:
    client, plain, converted = client_of(name), load(folder_of(name)), load(converted_of(name))
    options = {"max_new_tokens": 20, "do_sample": False, "num_beams": 1}
    expected = plain.generate(**plain_batch(folder_of(name)), **options)
    found = converted.generate(**client.encrypt_batch(TEXTS), **options)
    assert np.array_equal(client.plain_ids(found), expected)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder_of(name))
    assert client.decrypt(found[0]) == tokenizer.decode(expected[0], skip_special_tokens=True) != ""


@pytest.mark.parametrize("name", [*GENERATORS, "bert-lm", "roberta-lm", "distilbert-lm", "mpnet-lm"])
@pytest.mark.parametrize("transform", MAPPED)
def test_with_its_embeddings_mapped_back_a_model_computes_the_same(
    name: str, transform: str, folder_of: Folders, client_of: Callable[..., PasskeyClient], converted_of: Folders
) -> None:
    """So output rows, their biases and T5's scale are right even where they had to be untied."""
    client, model = client_of(name, transform), load(converted_of(name, transform))
    keys = subkeys(PassKey.from_text(PASSKEY), client.record.stretching)
    plain = load(folder_of(name))
    rows = plain.get_input_embeddings().weight.detach()
    affine = client.record.transform.map(keys.transform, rows.shape[1], float(rows.double().norm(dim=1).mean()))
    with torch.no_grad():
        for embeddings in {id(each): each for each in map(input_rows, model.modules()) if each is not None}.values():
            embeddings.copy_(torch.from_numpy(affine.inverse()(embeddings.double().numpy())))
    new = torch.from_numpy(client.encrypted_ids(np.arange(client.record.rows)))
    starts = {"decoder_input_ids": torch.tensor([[0, 5, 9]] * len(TEXTS))} if name in GENERATORS else {}
    mapped = {key: new[ids] for key, ids in starts.items()}
    batch = plain_batch(folder_of(name))
    real = batch["attention_mask"].bool() if not starts else torch.ones(len(TEXTS), 3, dtype=torch.bool)
    expected = run(plain, {**batch, **starts})["logits"]
    found = run(model, {**client.encrypt_batch(TEXTS), **mapped})["logits"][..., new]
    largest = float(expected.abs().max())
    torch.testing.assert_close(found[real], expected[real], atol=1e-3 * largest, rtol=0.0)


def input_rows(module: Any) -> torch.Tensor | None:
    if not isinstance(module, transformers.PreTrainedModel):
        return None
    weight: torch.Tensor = module.get_input_embeddings().weight
    return weight


@pytest.mark.parametrize("transform", MAPPED)
@pytest.mark.parametrize("name", ["bert", "clip", "t5"])
def test_rows_are_mapped_and_go_where_their_ids_go(
    name: str, transform: str, folder_of: Folders, converted_of: Folders, client_of: Callable[..., PasskeyClient]
) -> None:
    client = client_of(name, transform)
    keys = subkeys(PassKey.from_text(PASSKEY), client.record.stretching)
    plain = load(folder_of(name)).get_input_embeddings().weight.detach().double().numpy()
    found = load(converted_of(name, transform)).get_input_embeddings().weight.detach().numpy()
    affine = client.record.transform.map(keys.transform, plain.shape[1], np.linalg.norm(plain, axis=1).mean())
    new = client.encrypted_ids(np.arange(len(plain)))
    np.testing.assert_allclose(found[new], affine(plain), rtol=1e-5, atol=1e-5)


def test_noise_is_put_on_the_rows(folder_of: Folders, passkey: PassKey, stretching: Stretching, tmp_path: Path) -> None:
    convert(folder_of("bert"), tmp_path / "noisy", passkey, transform="none", noise=0.2, kdf=stretching)
    client = PasskeyClient(folder_of("bert"), passkey, tmp_path / "noisy")
    plain = load(folder_of("bert")).get_input_embeddings().weight.detach()
    found = load(tmp_path / "noisy").get_input_embeddings().weight.detach()
    added = found[client.encrypted_ids(np.arange(len(plain)))] - plain
    shares = (added.norm(dim=1) / plain.norm(dim=1))[1:]  # the first is padding's, of zeros
    assert shares.mean() == pytest.approx(0.2, rel=0.05)


def test_plain_output_rows_are_given_away_only_where_they_must_be(
    folder_of: Folders, passkey: PassKey, stretching: Stretching, tmp_path: Path
) -> None:
    given_away = {
        (name, transform)
        for name, transform in [
            *((name, transform) for name in ("bert", "bert-lm", "bert-untied-lm") for transform in ("none", "glide")),
            ("bert-lm", "orthogonal"),
            ("t5", "glide"),
            ("t5", "orthogonal"),
        ]
        if convert(
            folder_of(name), tmp_path / f"{name}-{transform}", passkey, transform=transform, kdf=stretching
        ).plain_rows
    }
    assert given_away == {("bert-lm", "glide"), ("bert-lm", "orthogonal"), ("t5", "glide")}


def test_a_model_that_the_map_was_carried_through_generates_what_the_plain_one_does(
    folder_of: Folders, passkey: PassKey, stretching: Stretching, tmp_path: Path
) -> None:
    convert(folder_of("t5"), tmp_path / "t5", passkey, transform="orthogonal", kdf=stretching)
    client = PasskeyClient(folder_of("t5"), passkey, tmp_path / "t5")
    inputs = transformers.AutoTokenizer.from_pretrained(folder_of("t5"))([TEXTS[0]], return_tensors="pt")
    options = {"max_new_tokens": 12, "do_sample": False}
    plain = transformers.T5ForConditionalGeneration.from_pretrained(folder_of("t5")).generate(**inputs, **options)
    encrypted = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path / "t5").generate(
        **client.encrypt_batch([TEXTS[0]]), **options
    )
    assert client.plain_ids(encrypted.numpy()).tolist() == plain.tolist()
    assert len(set(plain[0].tolist())) > 2


@pytest.mark.parametrize(
    ("name", "transform"), [("bert", "glide"), ("bert", "orthogonal"), ("roberta", "none"), ("clip", "glide")]
)
def test_padding_influences_nothing(
    name: str, transform: str, converted_of: Folders, client_of: Callable[..., PasskeyClient]
) -> None:
    client, model = client_of(name, transform), load(converted_of(name, transform))
    states = ("last_hidden_state", "text_embeds")
    together = run(model, client.encrypt_batch(TEXTS))
    alone = run(model, client.encrypt_batch(TEXTS[-1:]))
    length = alone["last_hidden_state"].shape[1]
    assert length < together["last_hidden_state"].shape[1]
    for each in states:
        if each in alone:
            cut = together[each][-1:, :length] if each == states[0] else together[each][-1:]
            torch.testing.assert_close(cut, alone[each], atol=1e-5, rtol=1e-5)


def test_ids_that_guide_generation_are_mapped(
    folder_of: Folders, passkey: PassKey, stretching: Stretching, tmp_path: Path
) -> None:
    source = shutil.copytree(folder_of("bart"), tmp_path / "plain")
    batch, options = plain_batch(source), {"max_new_tokens": 12, "do_sample": False}
    usual = load(source).generate(**batch, **options)
    forced, banned = 77, int(usual[0, 3])
    path = source / "generation_config.json"
    guides = {
        "forced_bos_token_id": forced,
        "bad_words_ids": [[banned]],
        "suppress_tokens": [200, 201],
        "begin_suppress_tokens": [202],
        "sequence_bias": [[[300], -4.0], [[301, 302], 2.0]],
    }
    path.write_text(json.dumps({**json.loads(path.read_text()), **guides}))
    expected = load(source).generate(**batch, **options)
    assert expected[0, 1] == forced
    assert banned not in expected
    convert(source, tmp_path / "converted", passkey, transform="none", kdf=stretching)
    client = PasskeyClient(source, passkey, tmp_path / "converted")
    found = load(tmp_path / "converted").generate(**client.encrypt_batch(TEXTS), **options)
    assert np.array_equal(client.plain_ids(found), expected)
    written = json.loads((tmp_path / "converted" / "generation_config.json").read_text())
    assert written["bad_words_ids"] == [[int(client.encrypted_ids(banned))]]
    assert written["decoder_start_token_id"] == 2  # special tokens stay


@pytest.mark.parametrize("name", BUILDERS)
def test_the_server_s_tokenizer_gives_the_client_s_ids(
    name: str, converted_of: Folders, client_of: Callable[..., PasskeyClient]
) -> None:
    client = client_of(name)
    server = transformers.AutoTokenizer.from_pretrained(converted_of(name))
    batch = client.encrypt_batch(TEXTS[:2], TEXTS[2:])
    encrypted = [client.encrypt(text, pair) for text, pair in zip(TEXTS[:2], TEXTS[2:], strict=True)]
    found = server(
        [client.text_of(each) for each in encrypted],
        [client.text_of(each, 1) for each in encrypted],
        padding=True,
        return_tensors="pt",
    )
    assert {**found}.keys() == batch.keys()
    assert all(torch.equal(found[each], batch[each]) for each in batch)
    assert server.model_max_length == 48


@pytest.mark.parametrize("name", BUILDERS)
def test_special_tokens_keep_names_and_ids(name: str, folder_of: Folders, converted_of: Folders) -> None:
    plain, server = (transformers.AutoTokenizer.from_pretrained(each) for each in (folder_of(name), converted_of(name)))
    assert {**plain.special_tokens_map} == {**server.special_tokens_map}
    assert server.convert_tokens_to_ids(plain.all_special_tokens) == plain.all_special_ids
    # Those that no role is named after, such as T5's sentinels, are special too.
    added = {place: str(token) for place, token in plain.added_tokens_decoder.items() if token.special}
    assert {place: str(token) for place, token in server.added_tokens_decoder.items()} == added


@pytest.mark.parametrize(
    ("name", "transform"), [*((name, "none") for name in BUILDERS), ("bert-lm", "glide"), ("t5", "orthogonal")]
)
def test_no_file_of_the_server_holds_a_vocabulary_entry(
    name: str, transform: str, folder_of: Folders, converted_of: Folders
) -> None:
    assert readable_entries(folder_of(name), folder_of(name))  # so the search finds what there is
    assert readable_entries(folder_of(name), converted_of(name, transform)) == set()


def readable_entries(source: Path, folder: Path) -> set[str]:
    """Entries of the vocabulary of `source`, of 4 characters or more, that some file of `folder` holds.

    The marks of a word's begin or end don't count, so that the word alone is found as well.
    """
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    special = {*tokenizer.all_special_tokens, *map(str, tokenizer.added_tokens_decoder.values())} - {"glockenspiel"}
    entries = {re.sub(r"^(##|Ġ|▁)|</w>$", "", entry) for entry in tokenizer.get_vocab().keys() - special}
    content = b"\n".join(path.read_bytes() for path in sorted(folder.iterdir()))
    for word in FORMAT_WORDS:
        content = content.replace(word, b"")
    return {entry for entry in entries if len(entry) >= 4 and entry.encode() in content}


def test_the_embedded_model_computes_the_same_and_shows_nothing(
    passkey: PassKey, stretching: Stretching, converted_of: Folders, tmp_path: Path
) -> None:
    source = model_folder("config.json", "tokenizer.json", "model.safetensors")
    convert(source, tmp_path / "converted", passkey, transform="none", kdf=stretching)
    client = PasskeyClient(source, passkey, tmp_path / "converted")
    expected = run(load(source), plain_batch(source))
    found = run(load(tmp_path / "converted"), client.encrypt_batch(TEXTS))
    assert torch.equal(found["last_hidden_state"], expected["last_hidden_state"])
    # 30,000 entries hold every field's name, so whole strings are looked at: the formats' own are in other models, too.
    special = {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"}
    names = {*json.loads((tmp_path / "converted" / "tokenizer.json").read_text())["model"]["vocab"]}
    assert len(names) == 30_522
    assert {name for name in names if not re.fullmatch("[0-9a-f]{32}", name)} == special
    readable = {*transformers.AutoTokenizer.from_pretrained(source).get_vocab()} - special
    header = (tmp_path / "converted" / "model.safetensors").read_bytes()[8:].split(b"}}", 1)[0].decode() + "}}"
    assert {*json.loads(header)} <= {*load(source).state_dict(), "__metadata__"}
    # Old configurations name the kind of positions, new ones don't.
    assert said(tmp_path / "converted") & readable <= said(converted_of("bert")) | {"absolute"}


def said(folder: Path) -> set[str]:
    """All strings in the JSON files of a folder."""
    return {each for path in folder.glob("*.json") for each in strings(json.loads(path.read_text()))}


def strings(content: Any) -> set[str]:
    if isinstance(content, dict):
        return {*content, *(each for value in content.values() for each in strings(value))}
    if isinstance(content, list):
        return {each for value in content for each in strings(value)}
    return {content} if isinstance(content, str) else set()


def test_texts_in_a_configuration_are_left_out(folder_of: Folders, converted_of: Folders) -> None:
    assert "glimmered" in (folder_of("t5") / "config.json").read_text()
    assert "glimmered" not in (converted_of("t5") / "config.json").read_text()


@pytest.mark.parametrize("transform", ["none", "glide", "orthogonal"])
def test_the_same_passkey_and_salt_give_the_same_bytes(
    transform: Any, folder_of: Folders, converted_of: Folders, passkey: PassKey, stretching: Stretching, tmp_path: Path
) -> None:
    convert(folder_of("bert"), tmp_path / "again", passkey, transform=transform, carry=False, kdf=stretching)
    assert contents(tmp_path / "again") == contents(converted_of("bert", transform))


def test_each_conversion_has_a_salt_of_its_own(folder_of: Folders, passkey: PassKey, tmp_path: Path) -> None:
    first, second = (
        convert(folder_of("bert"), tmp_path / name, passkey, transform="none") for name in ("first", "second")
    )
    assert first.record.stretching.salt != second.record.stretching.salt
    one, two = contents(first.folder), contents(second.folder)
    assert one.keys() == two.keys()
    assert {name for name in one if one[name] == two[name]} == {"config.json", "tokenizer_config.json"}
    names = [{*json.loads(each["tokenizer.json"])["model"]["vocab"]} for each in (one, two)]
    assert names[0] & names[1] == {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_neither_the_passkey_nor_a_key_made_of_it_is_written(converted_of: Folders, passkey: PassKey) -> None:
    folder = converted_of("bert", "orthogonal")
    keys = subkeys(passkey, read_record(folder).stretching)
    secrets = [PASSKEY.encode(), *(value for each in vars(keys).values() for value in (each, each.hex().encode()))]
    assert not [secret for secret in secrets for content in contents(folder).values() if secret in content]


def test_the_folder_says_nothing_of_where_the_model_was(folder_of: Folders, converted_of: Folders) -> None:
    assert not [name for name, content in contents(converted_of("bert")).items() if b"bert0" in content]
    assert str(folder_of("bert")).endswith("bert0")


def test_all_files_may_be_read_by_whom_the_umask_lets(converted_of: Folders) -> None:
    assert len({path.stat().st_mode for path in converted_of("bert").iterdir()}) == 1


def test_half_precision_stays(folder_of: Folders, passkey: PassKey, stretching: Stretching, tmp_path: Path) -> None:
    transformers.BertModel.from_pretrained(folder_of("bert")).half().save_pretrained(tmp_path / "half")
    transformers.AutoTokenizer.from_pretrained(folder_of("bert")).save_pretrained(tmp_path / "half")
    convert(tmp_path / "half", tmp_path / "converted", passkey, transform="none", kdf=stretching)
    assert {each.dtype for each in load_file(tmp_path / "converted" / "model.safetensors").values()} == {torch.float16}


def test_a_tensor_that_the_model_s_files_lack_is_not_made_up(
    folder_of: Folders, passkey: PassKey, stretching: Stretching, tmp_path: Path
) -> None:
    source = shutil.copytree(folder_of("bert"), tmp_path / "plain")
    state = {name: each for name, each in load_file(source / "model.safetensors").items() if "pooler" not in name}
    save_file(state, source / "model.safetensors", metadata={"format": "pt"})
    convert(source, tmp_path / "converted", passkey, transform="none", kdf=stretching)
    assert load_file(tmp_path / "converted" / "model.safetensors").keys() == state.keys()


def test_a_tokenizer_may_be_in_a_folder_of_its_own(
    folder_of: Folders, passkey: PassKey, stretching: Stretching, tmp_path: Path
) -> None:
    for name, files in (("tokenizer", "tokenizer*"), ("text_encoder", "[cm]*")):
        (tmp_path / name).mkdir()
        for path in folder_of("clip").glob(files):
            shutil.copy(path, tmp_path / name)
    target = tmp_path / "converted"
    convert(tmp_path / "text_encoder", target, passkey, tokenizer=tmp_path / "tokenizer", kdf=stretching)
    assert PasskeyClient(tmp_path / "tokenizer", passkey, target).encrypt(LINES[0]).ids


class TestRefusals:
    """What can't be converted is refused with one line, and nothing is left behind."""

    @pytest.fixture
    def refused(self, passkey: PassKey, stretching: Stretching, tmp_path: Path) -> Callable[..., str]:
        def refused(source: Path | str, target: str = "new", **options: Any) -> str:
            before = {*tmp_path.iterdir()}
            with pytest.raises((ConversionError, DataError)) as caught:
                convert(source, tmp_path / target, passkey, **{"kdf": stretching, **options})
            assert {*tmp_path.iterdir()} == before
            assert "\n" not in str(caught.value)
            return str(caught.value)

        return refused

    def test_a_converted_model(self, refused: Callable[..., str], converted_of: Folders) -> None:
        assert refused(converted_of("bert")).endswith("is a converted model already")

    def test_a_target_that_is_there(self, refused: Callable[..., str], folder_of: Folders, tmp_path: Path) -> None:
        (tmp_path / "new").mkdir()
        assert "exists already; it is not overwritten" in refused(folder_of("bert"))
        assert "does not exist" in refused(folder_of("bert"), "absent/new")

    def test_a_folder_without_a_model(self, refused: Callable[..., str], tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        assert str(tmp_path / "empty") in refused(tmp_path / "empty")

    def test_weights_in_a_pickle(self, refused: Callable[..., str], folder_of: Folders, tmp_path: Path) -> None:
        source = shutil.copytree(folder_of("bert"), tmp_path / "pickle")
        torch.save(load_file(source / "model.safetensors"), source / "pytorch_model.bin")
        (source / "model.safetensors").unlink()
        assert "its model can't be read" in refused(source)

    def test_weights_cut_short(self, refused: Callable[..., str], folder_of: Folders, tmp_path: Path) -> None:
        source = shutil.copytree(folder_of("bert"), tmp_path / "short")
        content = (source / "model.safetensors").read_bytes()
        (source / "model.safetensors").write_bytes(content[: len(content) // 2])
        assert "its model can't be read" in refused(source)

    def test_a_missing_embedding(self, refused: Callable[..., str], folder_of: Folders, tmp_path: Path) -> None:
        source = shutil.copytree(folder_of("bert"), tmp_path / "headless")
        state = load_file(source / "model.safetensors")
        del state["embeddings.word_embeddings.weight"]
        save_file(state, source / "model.safetensors", metadata={"format": "pt"})
        assert "its files lack embeddings.word_embeddings.weight" in refused(source)

    def test_a_model_without_token_embeddings(
        self, refused: Callable[..., str], folder_of: Folders, tmp_path: Path
    ) -> None:
        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        transformers.ViTModel(transformers.ViTConfig(image_size=16, patch_size=8, **sizes)).save_pretrained(
            tmp_path / "vision"
        )
        said = refused(tmp_path / "vision", tokenizer=folder_of("bert"))
        assert said.endswith("ViTModel: has no token embeddings that are known here")

    def test_code_that_is_not_of_transformers(
        self, refused: Callable[..., str], folder_of: Folders, tmp_path: Path
    ) -> None:
        source = shutil.copytree(folder_of("bert"), tmp_path / "own")
        config = json.loads((source / "config.json").read_text())
        (source / "config.json").write_text(json.dumps({**config, "architectures": ["MyModel"]}))
        assert "its architecture MyModel is not part of transformers" in refused(source)

    def test_a_tokenizer_in_python_alone(self, refused: Callable[..., str], folder_of: Folders, tmp_path: Path) -> None:
        transformers.ByT5Tokenizer().save_pretrained(tmp_path / "bytes")
        assert "is a tokenizer in Python alone" in refused(folder_of("t5"), tokenizer=tmp_path / "bytes")

    def test_a_tokenizer_of_a_larger_model(self, refused: Callable[..., str], folder_of: Folders) -> None:
        said = refused(folder_of("bert"), tokenizer=folder_of("roberta"))
        assert said.endswith("ids go up to 499, but the model has 199 embeddings")

    def test_a_tensor_of_unknown_use_with_a_row_per_token(
        self, refused: Callable[..., str], folder_of: Folders, tmp_path: Path
    ) -> None:
        source = shutil.copytree(folder_of("bert"), tmp_path / "odd")
        config = transformers.BertConfig.from_pretrained(source, intermediate_size=199)
        transformers.BertModel(config).save_pretrained(source)
        assert "has a row for each token, and what it does is not known here" in refused(source)

    def test_a_generation_that_stops_at_strings(
        self, refused: Callable[..., str], folder_of: Folders, tmp_path: Path
    ) -> None:
        source = shutil.copytree(folder_of("bart"), tmp_path / "stops")
        path = source / "generation_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "stop_strings": ["lanterns"]}))
        assert "its generation stops at strings" in refused(source)

    def test_an_old_clip_whose_highest_id_is_a_word(
        self, refused: Callable[..., str], folder_of: Folders, tmp_path: Path
    ) -> None:
        source = shutil.copytree(folder_of("clip-old"), tmp_path / "old")
        tokenizer = transformers.AutoTokenizer.from_pretrained(source)
        tokenizer.add_tokens(["glockenspiel"])
        tokenizer.save_pretrained(source)
        model = transformers.CLIPTextModelWithProjection.from_pretrained(source)
        model.resize_token_embeddings(len(tokenizer))
        model.config.eos_token_id = 2
        model.save_pretrained(source)
        assert "ends at its highest id" in refused(source)

    def test_a_bad_transform(self, refused: Callable[..., str], folder_of: Folders) -> None:
        assert "transform is one of" in refused(folder_of("bert"), transform="spiral")
        assert "transform orthogonal has none" in refused(folder_of("bert"), transform="orthogonal", factor=2)

    def test_an_unknown_stretching(self, refused: Callable[..., str], folder_of: Folders) -> None:
        assert "argon2id and scrypt" in refused(folder_of("bert"), kdf="sum of the characters")


class TestRecord:
    """A folder without a whole record, or with other files than it tells of, is no converted model."""

    @pytest.fixture
    def folder(self, converted_of: Folders, tmp_path: Path) -> Path:
        return shutil.copytree(converted_of("bert"), tmp_path / "copy")

    def test_a_whole_folder_passes(self, folder: Path) -> None:
        record = check_folder(folder)
        assert (record.rows, record.transform, record.special) == (199, Transform("none"), (0, 1, 2, 3, 4))

    @pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "tokenizer_config.json", "config.json"])
    def test_a_file_that_is_missing_or_changed_is_named(self, folder: Path, name: str) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(ConversionError, match=f"{name} was changed since the conversion"):
            check_folder(folder)
        (folder / name).unlink()
        with pytest.raises(ConversionError, match=f"{name} is missing"):
            check_folder(folder)

    def test_an_added_file_is_named(self, folder: Path) -> None:
        (folder / "vocab.txt").write_text("drizzle\n")
        with pytest.raises(ConversionError, match=r"vocab\.txt was added"):
            check_folder(folder)

    def test_a_folder_without_a_record_is_half_converted(self, folder: Path) -> None:
        (folder / "passkey.json").unlink()
        for read in (check_folder, read_record):
            with pytest.raises(ConversionError, match=r"has no passkey\.json, so it is no whole converted model"):
                read(folder)

    @pytest.mark.parametrize("share", [0.0, 0.3, 0.98])
    def test_a_record_cut_short_is_refused(self, folder: Path, share: float) -> None:
        content = (folder / "passkey.json").read_text().rstrip()
        (folder / "passkey.json").write_text(content[: int(share * len(content))])
        with pytest.raises(ConversionError, match="cut short or damaged"):
            check_folder(folder)

    @pytest.mark.parametrize(
        "changes",
        [
            {"format": "latentguard passkey model 2"},
            {"rows": -1},
            {"rows": "199"},
            {"special": [500]},
            {"special": None},
            {"files": []},
            {"files": {"model.safetensors": 7}},
            {"check": "größe"},
            {"check": None},
            {"vocabulary": 3},
            {"stretching": None},
            {"transform": {}},
            {"note": "unknown field"},
        ],
    )
    def test_a_record_with_a_bad_field_is_refused(self, folder: Path, changes: dict[str, Any]) -> None:
        path = folder / "passkey.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
        with pytest.raises(ConversionError, match=r"passkey\.json: "):
            read_record(folder)

    def test_nesting_without_end_is_refused(self, folder: Path) -> None:
        (folder / "passkey.json").write_text("[" * 100_000)
        with pytest.raises(ConversionError):
            read_record(folder)

    def test_what_is_no_folder_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises((ConversionError, DataError), match="absent"):
            check_folder(tmp_path / "absent")

    def test_its_values_depend_on_all_it_says(self, folder: Path, passkey: PassKey) -> None:
        record = read_record(folder)
        keys = subkeys(passkey, record.stretching)
        others = (
            replace(record, rows=200),
            replace(record, special=(0, 1)),
            replace(record, vocabulary="0" * 32),
            replace(record, transform=Transform("glide")),
        )
        assert len({record.check, *(each.with_check(keys).check for each in others)}) == 5
