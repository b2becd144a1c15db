"""Reading the original tokenizer, and writing the encrypted one for `AutoTokenizer` to load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from privacy.errors import ConversionError
from privacy.passkey.vocabulary import EncryptedVocabulary, PlainVocabulary, tokenizer_json

# Longer is what transformers says of a tokenizer without a limit.
_MAX_LENGTH = 10**9


def load_tokenizer(place: str | Path) -> Any:
    """The transformers tokenizer of a folder or hub name. Raises ConversionError if none can be read there."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(place)
    except Exception as error:  # transformers lets through whatever its many parsers raise
        raise ConversionError(f"{place}: its tokenizer can't be read: {first_line(error)}") from error


def save_tokenizer(folder: Path, original: Any, plain: PlainVocabulary, encrypted: EncryptedVocabulary) -> None:
    """Writes tokenizer.json and tokenizer_config.json: what the original says of itself, without its vocabulary."""
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_input_names": list(original.model_input_names),
        "padding_side": original.padding_side,
        "truncation_side": original.truncation_side,
        **{name: str(token) for name, token in original.special_tokens_map.items() if isinstance(token, str)},
    }
    if original.model_max_length < _MAX_LENGTH:
        config["model_max_length"] = original.model_max_length
    content = tokenizer_json(encrypted.tokens, plain.special, plain.template)
    (folder / "tokenizer.json").write_text(content, encoding="utf-8", newline="\n")
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8", newline="\n")


def first_line(error: Exception) -> str:
    """The first line of what an exception of another library says."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
