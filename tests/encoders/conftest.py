"""Small random text encoders in the formats that latentguard reads, and a cache folder of the tests' own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import open_clip
import pytest
import torch
import transformers

from latentguard.encoders.embedded import EmbeddedEncoder

WORDS = [
    *("a", "red", "wine", "on", "the", "table", "nude", "portrait", "of", "knight", "with", "sword", "and", "shield"),
    *("photo", "dog", "running", "through", "field"),
]


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The cache of the whole run: the embedded model is unpacked once and not into the user's own cache."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LATENTGUARD_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def reference() -> EmbeddedEncoder:
    """The embedded model in transformers, which the other ways of running it are compared with."""
    return EmbeddedEncoder(backend="torch")


@pytest.fixture(scope="session")
def embedded() -> EmbeddedEncoder:
    """The embedded default as users get it on a CPU."""
    return EmbeddedEncoder()


@pytest.fixture(scope="session")
def clip_tokenizer() -> transformers.CLIPTokenizer:
    """The tokenizer of the published CLIP models, from the vocabulary that open_clip carries."""
    simple = open_clip.SimpleTokenizer()
    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {names.get(token, token): index for token, index in simple.encoder.items()}
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=list(simple.bpe_ranks), model_max_length=77)


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory, clip_tokenizer: transformers.CLIPTokenizer) -> Path:
    torch.manual_seed(0)
    config = transformers.CLIPTextConfig(
        vocab_size=len(clip_tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        bos_token_id=clip_tokenizer.bos_token_id,
        eos_token_id=clip_tokenizer.eos_token_id,
    )
    return save(tmp_path_factory.mktemp("clip"), transformers.CLIPTextModel(config), clip_tokenizer)


@pytest.fixture(scope="session")
def bert_tokenizer() -> transformers.PreTrainedTokenizerBase:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    entries = [*special, *letters, *[f"##{letter}" for letter in letters], *WORDS[1:]]
    return transformers.BertTokenizer(
        vocab={entry: index for index, entry in enumerate(entries)}, model_max_length=64, do_lower_case=True
    )


@pytest.fixture(scope="session")
def bert_folder(tmp_path_factory: pytest.TempPathFactory, bert_tokenizer: transformers.PreTrainedTokenizerBase) -> Path:
    torch.manual_seed(1)
    config = transformers.BertConfig(
        vocab_size=len(bert_tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
    )
    return save(tmp_path_factory.mktemp("bert"), transformers.BertModel(config), bert_tokenizer)


@pytest.fixture(scope="session")
def t5_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(2)
    pieces = [f"\u2581{word}" for word in WORDS] + [chr(code) for code in range(ord("a"), ord("z") + 1)] + ["\u2581"]
    scores = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)] + [(piece, -float(len(piece) < 3)) for piece in pieces]
    tokenizer = transformers.T5Tokenizer(vocab=list(dict(scores).items()), extra_ids=0, model_max_length=48)
    config = transformers.T5Config(
        vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, pad_token_id=0
    )
    return save(tmp_path_factory.mktemp("t5"), transformers.T5EncoderModel(config), tokenizer)


def save(folder: Path, model: transformers.PreTrainedModel, tokenizer: transformers.PreTrainedTokenizerBase) -> Path:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
