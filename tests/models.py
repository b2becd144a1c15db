"""Small real models for the tests: random, but the same in every run."""

from __future__ import annotations

import string
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers

from latentguard.encoders.base import TokenStates, Window
from latentguard.encoders.huggingface import HuggingFaceEncoder
from latentguard.heads import Combination, ConceptScale, Heads
from latentguard.lexicon import WordRarity
from latentguard.mapping import MappingLayer, MappingShape
from latentguard.prompt_head import PromptHead, PromptHeadShape
from latentguard.records import ConceptEntry
from latentguard.weights import WeightsConfig, save_weights

WIDTH, WINDOW = 32, 32
WORDS = (
    *("red", "wine", "on", "the", "table", "nude", "portrait", "of", "knight", "with", "sword", "and", "shield"),
    *("photo", "dog", "running", "through", "field", "knife", "fight", "gun", "blood", "naked", "woman", "bomb"),
    *("cat", "sailing", "boat", "house", "river", "sunset", "war", "street", "garden", "bridge", "old", "city", "in"),
)
CONCEPTS = (
    ConceptEntry("knife fight", "violence"),
    ConceptEntry("gun war", "violence"),
    ConceptEntry("naked woman", "sexual"),
    ConceptEntry("blood on the street", "shocking"),
    ConceptEntry("bomb"),
)
PROMPTS = (
    "a red wine on the table",
    "portrait of a knight with a sword and a shield",
    "photo of a dog running through the field",
    "naked",
    "a bomb in the old city, blood on the bridge!",
    "sunset",
)
LONG_PROMPT = (
    "the cat and the dog in the garden of the old house on the river, " * 6 + "a naked woman and a knife fight"
)


def save_bert(folder: Path) -> Path:
    """A random two-layer BERT with a WordPiece vocabulary of letters and `WORDS`, and windows of 32 tokens."""
    characters = [*string.ascii_lowercase, *string.digits, *string.punctuation]
    entries = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters, *[f"##{c}" for c in characters], *WORDS]
    vocabulary = {entry: index for index, entry in enumerate(entries)}
    tokenizer = transformers.BertTokenizer(vocab=vocabulary, model_max_length=WINDOW, do_lower_case=True)
    torch.manual_seed(7)
    config = transformers.BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=WIDTH,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=WINDOW,
        initializer_range=0.5,  # so that the states of different words differ as much as a trained encoder's
    )
    transformers.BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def load_bert(folder: Path, kind: type[HuggingFaceEncoder] = HuggingFaceEncoder) -> HuggingFaceEncoder:
    """The encoder of a folder that `save_bert` wrote, or a subclass of it."""
    return kind(str(folder), device=torch.device("cpu"))


def random_mapping(width: int = WIDTH, seed: int = 0) -> MappingLayer:
    """A random mapping layer of 4 heads of 8, ready to score."""
    torch.manual_seed(seed)
    return MappingLayer(MappingShape(width, heads=4, head_width=8, output=16)).eval().requires_grad_(False)


def random_prompt_head(width: int = WIDTH, seed: int = 0) -> PromptHead:
    """A random prompt head of three categories, ready to score."""
    torch.manual_seed(seed)
    shape = PromptHeadShape(width, ("sexual", "shocking", "violence"), hidden=8)
    return PromptHead(shape).eval().requires_grad_(False)


def random_heads(width: int = WIDTH, output: int = 16, seed: int = 0) -> Heads:
    """Random heads to go with `random_mapping`; words of `PROMPTS` are known to be frequent."""
    torch.manual_seed(seed)
    scale = ConceptScale(output).eval().requires_grad_(False)
    combination = Combination(concept=1.0, part=0.3, named=2.0, prompt=0.8, bias=-1.0)
    return Heads(random_prompt_head(width, seed), scale, combination, WordRarity.of(PROMPTS))


def save_tiny_weights(folder: Path, encoder: str, *, mapping: MappingLayer | None = None) -> Path:
    """A weights folder for the encoder of that name: a random layer and a small bank."""
    mapping = mapping or random_mapping()
    config = WeightsConfig(encoder, mapping.shape, threshold=3.5, training={"source": "random"})
    return save_weights(folder, mapping, config, CONCEPTS, "# A random mapping layer\n")


class CountingEncoder(HuggingFaceEncoder):
    """Counts the windows that it encodes."""

    encoded = 0

    def encode_windows(self, windows: Sequence[Window]) -> TokenStates:
        self.encoded += len(windows)
        return super().encode_windows(windows)


class FailingEncoder(HuggingFaceEncoder):
    """From the moment `fails` is set, gives states that are not numbers for a window that holds `fails` as a token."""

    fails: int | None = None

    def encode_windows(self, windows: Sequence[Window]) -> TokenStates:
        states = super().encode_windows(windows)
        for row, window in enumerate(windows):
            if self.fails in window.ids:
                states.hidden[row, 1] = torch.nan
        return states
