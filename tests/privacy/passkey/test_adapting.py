"""Adapting a converted encoder: the plain one teaches it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from passkey_models import LINES
from safetensors.torch import load_file
from transformers import AutoModel

from privacy.errors import ConversionError, DataError, WrongPasskeyError
from privacy.passkey import PassKey, Stretching, check_folder, convert
from privacy.passkey.adapting import Adaptation, adapt

TEXTS = [line for _ in range(5) for line in LINES]
FEW = {"steps": 100, "batch_size": 8, "learning_rate": 3e-4}


@pytest.fixture(scope="module")
def mapped(
    folder_of: Callable[[str], Path],
    passkey: PassKey,
    stretching: Stretching,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A BERT whose embeddings are mapped, with the rest following as far as it can."""
    target = tmp_path_factory.mktemp("mapped") / "bert"
    return convert(folder_of("bert"), target, passkey, transform="orthogonal", kdf=stretching).folder


@pytest.fixture(scope="module")
def adapted(
    folder_of: Callable[[str], Path], mapped: Path, passkey: PassKey, tmp_path_factory: pytest.TempPathFactory
) -> Adaptation:
    return adapt(folder_of("bert"), mapped, tmp_path_factory.mktemp("adapted") / "bert", passkey, TEXTS, **FEW)


def test_it_comes_nearer_to_the_plain_model_on_every_layer(adapted: Adaptation) -> None:
    assert len(adapted.before) == len(adapted.after) == 2
    for before, after in zip(adapted.before, adapted.after, strict=True):
        assert 0 < after < 0.7 * before


def test_token_embeddings_stay_as_the_map_left_them(adapted: Adaptation, mapped: Path) -> None:
    name = "embeddings.word_embeddings.weight"
    after = load_file(adapted.folder / "model.safetensors")
    before = load_file(mapped / "model.safetensors")
    assert after.keys() == before.keys()
    assert torch.equal(after[name], before[name])
    assert not torch.equal(after["encoder.layer.0.output.dense.weight"], before["encoder.layer.0.output.dense.weight"])


def test_the_new_folder_is_whole_and_loads(adapted: Adaptation) -> None:
    record = check_folder(adapted.folder)
    assert record.transform.carried
    assert torch.isfinite(AutoModel.from_pretrained(adapted.folder)(torch.tensor([[2, 3, 4]])).last_hidden_state).all()


def test_a_permuted_model_has_nothing_to_learn(
    folder_of: Callable[[str], Path], converted_of: Callable[..., Path], passkey: PassKey, tmp_path: Path
) -> None:
    done = adapt(folder_of("bert"), converted_of("bert"), tmp_path / "new", passkey, TEXTS, steps=1, learning_rate=0.0)
    assert max(*done.before, *done.after) < 1e-9


def test_a_wrong_passkey_writes_nothing(folder_of: Callable[[str], Path], mapped: Path, tmp_path: Path) -> None:
    wrong = PassKey.from_text("another one that is long enough")
    with pytest.raises(WrongPasskeyError):
        adapt(folder_of("bert"), mapped, tmp_path / "new", wrong, TEXTS, **FEW)
    assert not list(tmp_path.iterdir())


def test_another_original_is_refused(
    folder_of: Callable[[str], Path], mapped: Path, passkey: PassKey, tmp_path: Path
) -> None:
    with pytest.raises(ConversionError, match="is not the model that"):
        adapt(folder_of("roberta"), mapped, tmp_path / "new", passkey, TEXTS, **FEW)


def test_a_changed_folder_is_refused(
    folder_of: Callable[[str], Path], mapped: Path, passkey: PassKey, tmp_path: Path
) -> None:
    changed = tmp_path / "changed"
    shutil.copytree(mapped, changed)
    (changed / "config.json").write_text("{}")
    with pytest.raises(ConversionError, match=r"config\.json was changed"):
        adapt(folder_of("bert"), changed, tmp_path / "new", passkey, TEXTS, **FEW)


def test_one_text_is_too_few(folder_of: Callable[[str], Path], mapped: Path, passkey: PassKey, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="two texts"):
        adapt(folder_of("bert"), mapped, tmp_path / "new", passkey, TEXTS[:1], **FEW)


def test_an_encoder_decoder_needs_none(
    folder_of: Callable[[str], Path], passkey: PassKey, stretching: Stretching, tmp_path: Path
) -> None:
    convert(folder_of("t5"), tmp_path / "t5", passkey, transform="orthogonal", kdf=stretching)
    with pytest.raises(ConversionError, match="only encoders are adapted"):
        adapt(folder_of("t5"), tmp_path / "t5", tmp_path / "new", passkey, TEXTS, **FEW)
