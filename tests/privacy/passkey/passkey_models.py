"""Builds the small models of these tests: random, the same in every run, each with a tokenizer of its family.

Vocabularies are larger than any other size in a model, so that no tensor is mistaken for one with a row per token.
"""

from __future__ import annotations

import json
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from tokenizers.implementations import ByteLevelBPETokenizer

PASSKEY = "Zwölf Boxkämpfer jagen Viktor"
# Words that no file format uses, so that finding one in a server's file means something.
LINES = (
    "the quick brown foxes were jumping over lazy hounds while sailors watched",
    "harbour lights glimmered through evening drizzle and nobody noticed",
    "grandmother's umbrella vanished yesterday near willow bridge",
    "seventeen violins played gloomy waltzes beneath crumbling balconies",
    "purple lanterns swayed wildly along narrow cobbled alleyways",
    "quiet gardeners pruned thorny rosebushes before thunderstorms arrived",
    "hungry travellers shared warm bread, olives and bitter chocolate",
    "mountain villages slept under thick blankets of fresh winter snow",
)
TEXTS = (LINES[0], "seventeen umbrellas vanished", "bitter winter drizzle, and quiet violins", "warm bread")
WIDTH, WINDOW = 32, 48

_ADDED = "glockenspiel"  # a word that was added to the tokenizer, not as a special token


def _wordpiece_entries(special: list[str]) -> dict[str, int]:
    """Letters, their continuations, and all words of `LINES`; a trainer breaks ties another way in each run."""
    letters = [*string.ascii_lowercase, *string.punctuation]
    words = sorted({word.strip(",").removesuffix("'s") for line in LINES for word in line.split()})
    entries = [*special, *letters, *[f"##{letter}" for letter in letters], *words]
    return {entry: place for place, entry in enumerate(entries)}


def _wordpiece(kind: type[Any] = transformers.BertTokenizer) -> Any:
    return kind(vocab=_wordpiece_entries(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]), model_max_length=WINDOW)


def _mpnet_tokenizer() -> Any:
    entries = _wordpiece_entries(["<s>", "<pad>", "</s>", "<unk>", "[UNK]", "<mask>"])
    return transformers.MPNetTokenizer(vocab=entries, model_max_length=WINDOW)


def _byte_level() -> Any:
    trained = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trained.train_from_iterator(LINES, vocab_size=500, min_frequency=1, special_tokens=special, show_progress=False)
    model = json.loads(trained.to_str())["model"]
    return transformers.RobertaTokenizer(model["vocab"], _merges(model), model_max_length=WINDOW)


def _clip_tokenizer() -> Any:
    trained = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=700, end_of_word_suffix="</w>", initial_alphabet=alphabet, show_progress=False
    )
    # Words as that tokenizer cuts them: a space belongs to none.
    trained.train_from_iterator([word for line in LINES for word in line.split()], trainer)
    model = json.loads(trained.to_str())["model"]
    # As in the published vocabulary, the special tokens are its last two.
    vocabulary = {**model["vocab"]}
    for token in ("<|startoftext|>", "<|endoftext|>"):
        vocabulary[token] = len(vocabulary)
    return transformers.CLIPTokenizer(vocabulary, _merges(model), model_max_length=WINDOW)


def _merges(model: dict[str, Any]) -> list[tuple[str, str]]:
    return [(left, right) for left, right in model["merges"]]


def _unigram(special: list[str]) -> list[tuple[str, float]]:
    trained = Tokenizer(models.Unigram())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=special, unk_token="<unk>", show_progress=False)
    trained.train_from_iterator(LINES, trainer)
    places = sorted(trained.get_vocab().items(), key=lambda entry: entry[1])
    return [(token, 0.0 if place < len(special) else -2.0 - place / 100) for token, place in places]


def _xlm_roberta_tokenizer() -> Any:
    vocabulary = [*_unigram(["<s>", "<pad>", "</s>", "<unk>"]), ("<mask>", 0.0)]
    return transformers.XLMRobertaTokenizer(vocab=vocabulary, model_max_length=WINDOW)


def _t5_tokenizer() -> Any:
    return transformers.T5Tokenizer(vocab=_unigram(["<pad>", "</s>", "<unk>"]), extra_ids=5, model_max_length=WINDOW)


def _save(folder: Path, kind: type[Any], config: Any, tokenizer: Any) -> None:
    """The model with random weights, spread so that each token gives states of its own."""
    torch.manual_seed(7)
    model = kind(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _sizes(**sizes: int) -> dict[str, Any]:
    common = {"hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return {**common, "max_position_embeddings": WINDOW + 2, "initializer_range": 0.5, **sizes}


def _bert(kind: str, **settings: Any) -> Callable[[Path], None]:
    def build(folder: Path) -> None:
        tokenizer = _wordpiece()
        tokenizer.add_tokens([_ADDED])
        # More embeddings than tokens, as where their number was rounded up.
        config = transformers.BertConfig(vocab_size=len(tokenizer) + 7, **_sizes(), **settings)
        _save(folder, getattr(transformers, kind), config, tokenizer)

    return build


def _distilbert(kind: str) -> Callable[[Path], None]:
    def build(folder: Path) -> None:
        tokenizer = _wordpiece(transformers.DistilBertTokenizer)
        config = transformers.DistilBertConfig(
            vocab_size=len(tokenizer),
            dim=WIDTH,
            hidden_dim=64,
            n_layers=2,
            n_heads=4,
            max_position_embeddings=WINDOW,
            initializer_range=0.5,
        )
        _save(folder, getattr(transformers, kind), config, tokenizer)

    return build


def _roberta(kind: str) -> Callable[[Path], None]:
    def build(folder: Path) -> None:
        tokenizer = _byte_level()
        config = transformers.RobertaConfig(
            vocab_size=len(tokenizer), pad_token_id=1, bos_token_id=0, eos_token_id=2, **_sizes(), type_vocab_size=1
        )
        _save(folder, getattr(transformers, kind), config, tokenizer)

    return build


def _xlm_roberta(folder: Path) -> None:
    tokenizer = _xlm_roberta_tokenizer()
    config = transformers.XLMRobertaConfig(
        vocab_size=len(tokenizer), pad_token_id=1, bos_token_id=0, eos_token_id=2, **_sizes(), type_vocab_size=1
    )
    _save(folder, transformers.XLMRobertaModel, config, tokenizer)


def _mpnet(folder: Path) -> None:
    tokenizer = _mpnet_tokenizer()
    config = transformers.MPNetConfig(vocab_size=len(tokenizer), pad_token_id=1, **_sizes())
    _save(folder, transformers.MPNetForMaskedLM, config, tokenizer)


def _clip(**settings: Any) -> Callable[[Path], None]:
    def build(folder: Path) -> None:
        tokenizer = _clip_tokenizer()
        config = transformers.CLIPTextConfig(
            vocab_size=len(tokenizer),
            bos_token_id=tokenizer.bos_token_id,
            pad_token_id=1,
            projection_dim=16,
            **{"eos_token_id": tokenizer.eos_token_id, **settings},
            **{**_sizes(), "max_position_embeddings": WINDOW},
        )
        _save(folder, transformers.CLIPTextModelWithProjection, config, tokenizer)

    return build


def _t5_config(tokenizer: Any, **settings: Any) -> Any:
    return transformers.T5Config(
        vocab_size=len(tokenizer) + 20,  # as the published 32,128 for 32,100 tokens
        d_model=WIDTH,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
        **settings,
    )


def _t5(folder: Path) -> None:
    tokenizer = _t5_tokenizer()
    # Each task's prompt is in the published model's configuration, too.
    tasks = {"summarization": {"prefix": "glimmered lanterns: "}}
    # The factor keeps it from generating one token again and again.
    config = _t5_config(tokenizer, task_specific_params=tasks, initializer_factor=3.0)
    _save(folder, transformers.T5ForConditionalGeneration, config, tokenizer)


def _t5_untied(folder: Path) -> None:
    """As T5 1.1, whose output rows are a tensor of their own; its configuration says so, and means the scaling too."""
    tokenizer = _t5_tokenizer()
    config = _t5_config(tokenizer, feed_forward_proj="gated-gelu")
    _save(folder, _UntiedT5, config, tokenizer)
    path = folder / "config.json"
    content = json.loads(path.read_text())
    del content["scale_decoder_outputs"]  # as the published one, which is older than this field
    content |= {"tie_word_embeddings": False, "architectures": ["T5ForConditionalGeneration"]}
    path.write_text(json.dumps(content))


class _UntiedT5(transformers.T5ForConditionalGeneration):
    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.lm_head.weight = torch.nn.Parameter(torch.randn_like(self.lm_head.weight))


def _bart(folder: Path) -> None:
    tokenizer = _byte_level()
    config = transformers.BartConfig(
        vocab_size=len(tokenizer),
        d_model=WIDTH,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_position_embeddings=WINDOW,
        init_std=0.3,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
        decoder_start_token_id=2,
        forced_eos_token_id=2,
    )
    _save(folder, transformers.BartForConditionalGeneration, config, tokenizer)


BUILDERS: dict[str, Callable[[Path], None]] = {
    "bert": _bert("BertModel"),
    "bert-classifier": _bert("BertForSequenceClassification", num_labels=3),
    "bert-tagger": _bert("BertForTokenClassification", num_labels=5),
    "bert-lm": _bert("BertForMaskedLM"),
    "bert-untied-lm": _bert("BertForMaskedLM", tie_word_embeddings=False),
    "distilbert-lm": _distilbert("DistilBertForMaskedLM"),
    "distilbert-classifier": _distilbert("DistilBertForSequenceClassification"),
    "roberta": _roberta("RobertaModel"),
    "roberta-lm": _roberta("RobertaForMaskedLM"),
    "xlm-roberta": _xlm_roberta,
    "mpnet-lm": _mpnet,
    "clip": _clip(),
    "clip-old": _clip(eos_token_id=2),
    "t5": _t5,
    "t5-untied": _t5_untied,
    "bart": _bart,
}
ENCODERS = tuple(name for name in BUILDERS if name not in ("t5", "t5-untied", "bart"))
GENERATORS = ("t5", "t5-untied", "bart")
