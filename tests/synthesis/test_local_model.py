"""A small random language model as a writer: what it says is malformed, counted and dropped; a seed repeats it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from latentguard.records import ConceptEntry
from latentguard.synthesis.backends import BackendError, LanguageModelBackend
from latentguard.synthesis.local_model import LocalModel
from latentguard.synthesis.tally import Tally

MESSAGES = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]
ARSON = ConceptEntry("arson")


def save_language_model(folder: Path, *, positions: int = 8192, chat: bool = False, llama: bool = False) -> Path:
    """A random causal model of one layer whose tokens are bytes."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate([*letters, "<end>"])}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<end>")
    if chat:
        tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[answer]"
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    size = len(vocabulary)
    if llama:
        config: transformers.PretrainedConfig = transformers.LlamaConfig(
            vocab_size=size,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=positions,
            bos_token_id=None,
            eos_token_id=size - 1,
        )
    else:
        config = transformers.GPT2Config(
            vocab_size=size,
            n_embd=16,
            n_layer=1,
            n_head=2,
            n_positions=positions,
            bos_token_id=size - 1,
            eos_token_id=size - 1,
        )
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["gpt2", "llama with a chat template"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    llama = request.param != "gpt2"
    return save_language_model(tmp_path_factory.mktemp("model"), chat=llama, llama=llama)


def test_a_seed_gives_the_same_answer_and_leaves_the_random_state_alone(folder: Path) -> None:
    model = LocalModel(str(folder), device="cpu", new_tokens=20)
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    answers = [model.answer(MESSAGES, seed, Tally()).text for seed in (1, 1, 2)]
    assert torch.equal(torch.rand(3), expected)
    assert answers[0] == answers[1] != answers[2]
    assert answers[0]


def test_malformed_answers_are_counted_and_dropped(folder: Path) -> None:
    backend = LanguageModelBackend(LocalModel(str(folder), device="cpu", new_tokens=16))
    tally = Tally()
    assert backend.pairs(ARSON, 3, 0, tally) == []
    assert backend.synonyms(ARSON, 3, 0, tally) == []
    assert tally.malformed == tally.requests == 4
    assert (backend.name, backend.model) == ("transformers", str(folder))


def test_the_instructions_reach_the_model(folder: Path) -> None:
    model = LocalModel(str(folder), device="cpu")
    text = model._tokenizer.decode(model._ids(MESSAGES)[0])
    assert "be brief" in text
    assert "hello" in text
    assert text.endswith("[answer]" if "[user]" in text else "ASSISTANT: ")


def test_a_model_too_short_for_the_instructions_is_refused(tmp_path: Path) -> None:
    model = LocalModel(str(save_language_model(tmp_path, positions=32)), device="cpu")
    with pytest.raises(BackendError, match="32 positions are too few"):
        model.answer(MESSAGES, 0, Tally())


def test_a_model_that_is_not_there() -> None:
    with pytest.raises(BackendError, match="/nowhere/at/all: can't be loaded"):
        LocalModel("/nowhere/at/all", device="cpu")


def test_a_folder_without_a_language_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(BackendError, match="can't be loaded"):
        LocalModel(str(tmp_path), device="cpu")
