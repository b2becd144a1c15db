"""Text towers of open_clip, by `ARCH:PRETRAINED`.

open_clip's own tokenizer gives no offsets, truncates, and takes the text of a special token for the token. Its
vocabulary and merges are therefore run in a fast tokenizer, on text cleaned as open_clip cleans it (broken encodings
mended, HTML entities resolved, lower case). The cleaning goes word by word so that the offsets can be kept: they are
exact to the character, except in a word whose length the cleaning changed, whose tokens all get the whole word's span.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from torch import Tensor

from latentguard.encoders.base import (
    Pooling,
    Precision,
    TokenStates,
    Window,
    chosen_layers,
    last_state,
    pad_windows,
    split_windows,
)
from latentguard.encoders.torch_runtime import TorchRuntime, to_device
from latentguard.errors import EncoderError, MissingDependencyError

_PAD_ID = 0
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"  # SimpleTokenizer's, without special tokens
_FAILURES = (OSError, ValueError, KeyError, RuntimeError, AssertionError)  # what open_clip raises for a bad name


class OpenClipEncoder:
    """A text tower of open_clip, named "open_clip:ARCH:PRETRAINED"; an empty PRETRAINED gives random weights.

    `hidden` is by default the state of every position after the final layer norm, `pooled` that of the end-of-text
    token, before any projection; windows of the tower's context length, 77 for most. layers: as for `load_encoder`; the
    final norm is the last layer's alone. PRETRAINED is a tag of open_clip or a checkpoint file. Raises
    MissingDependencyError where open_clip is not installed, and EncoderError for an unknown name, weights that can't be
    had, and a tower of another kind (Hugging Face towers, SigLIP, CoCa).
    """

    pooling: Pooling = "eos"

    def __init__(
        self,
        place: str,
        *,
        device: torch.device,
        precision: Precision | None = None,
        threads: int | None = None,
        layers: Sequence[int] | None = None,
        compiler: str | None = None,
    ) -> None:
        self.name = f"open_clip:{place}"
        self.device = device
        self.precision = precision
        self._runtime = TorchRuntime(self.name, device, precision, threads, compiler)
        architecture, _, pretrained = place.partition(":")
        tower, tokenizer = self._load(architecture, pretrained)
        self._tower = self._runtime.frozen(tower)
        self._run = self._runtime.compiled(self._hidden)
        self.depth = len(tower.transformer.resblocks)
        self.layers = chosen_layers(self.name, layers, self.depth)
        self.width: int = tower.ln_final.normalized_shape[0] * len(self.layers)
        self.window: int = tower.context_length
        self._tokenizer = _CleaningTokenizer(tokenizer)

    def windows(self, text: str) -> list[Window]:
        ids, offsets = self._tokenizer.tokens(text)
        return split_windows(
            ids, offsets, window=self.window, prefix=[self._tokenizer.start_id], suffix=[self._tokenizer.end_id]
        )

    def encode_windows(self, windows: Sequence[Window]) -> TokenStates:
        ids, mask = pad_windows(windows, _PAD_ID)
        ids, mask = to_device(ids, self.device), to_device(mask, self.device)
        with self._runtime.running():
            hidden = self._run(ids)
        return TokenStates(hidden, mask, last_state(hidden, mask))

    def encode(self, texts: Sequence[str]) -> TokenStates:
        return self.encode_windows([self.windows(text)[0] for text in texts])

    def _hidden(self, ids: Tensor) -> Tensor:
        states = [state for layer, state in enumerate(self._states(ids)) if layer in self.layers]
        return torch.cat([state.float() for state in states], dim=-1)

    def _states(self, ids: Tensor) -> Iterator[Tensor]:
        """The states [B, L, D] of each layer in turn, from the embeddings' to the highest layer asked for."""
        # As open_clip's encode_text, cut to the longest text: under the causal mask nothing after it matters.
        tower, length = self._tower, ids.shape[1]
        states = tower.token_embedding(ids) + tower.positional_embedding[:length]
        yield states
        for layer, block in enumerate(tower.transformer.resblocks[: self.layers[-1]], start=1):
            states = block(states, attn_mask=tower.attn_mask[:length, :length])
            yield tower.ln_final(states) if layer == self.depth else states

    def _load(self, architecture: str, pretrained: str) -> tuple[Any, Any]:
        try:
            import open_clip
        except ImportError as error:
            raise MissingDependencyError(
                f"{self.name} needs the package open_clip; install it with: pip install open-clip-torch"
            ) from error
        if architecture not in open_clip.list_models():
            raise EncoderError(f"{self.name}: open_clip has no architecture {architecture!r}")
        try:
            model = open_clip.create_model(
                architecture,
                pretrained=pretrained or None,
                load_weights=bool(pretrained),
                require_pretrained=bool(pretrained),
                pretrained_text=False,
                weights_only=True,
            )
            tokenizer = open_clip.get_tokenizer(architecture)
        except _FAILURES as error:
            reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise EncoderError(f"{self.name}: can't be loaded: {reason}") from error
        tower = getattr(model, "text", model)  # CLIP keeps the tower's parts itself, CustomTextCLIP has it as `text`
        causal = getattr(tower, "attn_mask", None) is not None and getattr(tower, "cls_emb", None) is None
        if not causal or not isinstance(tokenizer, open_clip.SimpleTokenizer):
            raise EncoderError(f"{self.name}: {type(tower).__name__} is not a text tower of the original CLIP's form")
        if tower is model:
            del model.visual
        return tower, tokenizer


class _CleaningTokenizer:
    """open_clip's SimpleTokenizer as a fast tokenizer with offsets into the text before cleaning."""

    def __init__(self, simple: Any) -> None:
        self.start_id: int = simple.sot_token_id
        self.end_id: int = simple.eot_token_id
        self._clean: Callable[[str], str] = simple.clean_fn
        self._fast = Tokenizer(
            models.BPE(vocab=simple.encoder, merges=list(simple.bpe_ranks), end_of_word_suffix="</w>")
        )
        self._fast.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )

    def tokens(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids without special tokens, and their spans of characters in the text."""
        cleaned: list[str] = []
        starts: list[int] = []  # of each cleaned character: where its origin starts in the text, and where it ends
        ends: list[int] = []
        for match in re.finditer(r"\S+", text):
            word = self._clean(match.group())
            if len(word) == len(match.group()):
                starts += range(match.start(), match.end())
                ends += range(match.start() + 1, match.end() + 1)
            else:
                starts += [match.start()] * len(word)
                ends += [match.end()] * len(word)
            cleaned += [word, " "]
            starts.append(match.end())
            ends.append(match.end())
        encoding = self._fast.encode("".join(cleaned), add_special_tokens=False)
        return encoding.ids, [(starts[first], ends[last - 1]) for first, last in encoding.offsets]
