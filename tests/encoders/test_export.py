"""The embedded encoder as a folder that transformers loads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from latentguard import cli
from latentguard.encoders.embedded import EmbeddedEncoder
from latentguard.encoders.export import export_embedded
from latentguard.errors import DataError

TEXTS = ("a Café by the river", "two knights with swords and a shield")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_embedded(tmp_path_factory.mktemp("export") / "minilm")


def test_it_is_the_embedded_encoder(folder: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder)
    batch = tokenizer(list(TEXTS), padding=True, return_tensors="pt")
    with torch.no_grad():
        found = model(**batch).last_hidden_state
    expected = EmbeddedEncoder(backend="torch").encode(TEXTS)
    mask = batch["attention_mask"].bool()
    assert torch.equal(mask, expected.mask.bool())
    torch.testing.assert_close(found[mask], expected.hidden[mask], atol=1e-5, rtol=1e-5)


def test_a_folder_that_is_there_is_not_overwritten(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="exists already"):
        export_embedded(folder)
    with pytest.raises(DataError, match="does not exist"):
        export_embedded(tmp_path / "absent" / "minilm")
    assert not [*tmp_path.iterdir()]


def test_the_command_writes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "minilm"
    assert cli.main(["encoder", "--output", str(target)]) == 0
    assert capsys.readouterr().out == f"wrote {target}\n"
    names = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert {path.name for path in target.iterdir()} == names
    assert cli.main(["encoder", "--output", str(target)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
