"""The embedded encoder as a folder of its own, for programs that load models with transformers."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from pathlib import Path

from latentguard.encoders.embedded import model_folder
from latentguard.errors import DataError
from latentguard.files import write_error

_FILES = ("config.json", "tokenizer.json", "model.safetensors")
# What the published tokenizer.json doesn't say, and AutoTokenizer needs to know.
_TOKENIZER = {
    "tokenizer_class": "BertTokenizer",
    "do_lower_case": True,
    "model_max_length": 512,
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}


def export_embedded(target: str | Path) -> Path:
    """Writes all-MiniLM-L6-v2 to a new folder that `AutoModel` and `AutoTokenizer` load; returns the folder.

    Raises:
        DataError: `target` is there already or can't be written.
        EncoderError: the embedded model isn't installed, or its files are not the published ones.
    """
    final = Path(target)
    if final.exists() or final.is_symlink():
        raise DataError(f"{target}: exists already; it is not overwritten")
    if not final.absolute().parent.is_dir():
        raise DataError(f"{target}: the folder {final.absolute().parent} does not exist")
    source = model_folder(*_FILES)
    temporary = final.absolute().with_name(f".tmp-{secrets.token_hex(8)}")
    try:
        temporary.mkdir()
        for name in _FILES:
            shutil.copyfile(source / name, temporary / name)
        (temporary / "tokenizer_config.json").write_text(json.dumps(_TOKENIZER, indent=1) + "\n", encoding="utf-8")
        os.rename(temporary, final)
    except OSError as error:
        raise write_error(target, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return final
