"""The verdicts on the prompts of one call."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from latentguard.encoders.base import TokenStates
from latentguard.encoders.huggingface import HuggingFaceEncoder, clip_text_tower
from latentguard.errors import UnscreenedError
from latentguard.integrations.diffusers.fit import is_changed_by_lora
from latentguard.integrations.diffusers.hooks import listening
from latentguard.integrations.diffusers.inputs import Row
from latentguard.integrations.diffusers.settings import Settings
from latentguard.normalize import normalize
from latentguard.verdict import Verdict

_TOKENIZERS = ("tokenizer", "tokenizer_2", "tokenizer_3")


class Screening:
    """Screens the rows of one call: first what needs no states, then what the pipeline's text encoder computes.

    Args:
        pipe: the pipeline.
        settings: its settings.
        fitting: the guard's encoder where it fits the pipeline's `text_encoder`, else None.
        rows: what is asked for.
        on_complete: called once the states of all texts that wait for them have come.
    """

    def __init__(
        self,
        pipe: Any,
        settings: Settings,
        fitting: HuggingFaceEncoder | None,
        rows: Sequence[Row],
        on_complete: Callable[[], None] | None = None,
    ) -> None:
        self._pipe, self._settings, self._guard, self._fitting = pipe, settings, settings.guard, fitting
        self._rows = rows
        self._on_complete = on_complete
        self._found: dict[str, list[Verdict]] = {}
        self._of_embeddings: list[list[Verdict]] = [[] for _ in rows]
        # Texts whose states will come, by the ids that the pipeline reads them as; several may be cut to the same.
        self._awaited: dict[tuple[int, ...], list[str]] = {}

    @property
    def awaits_states(self) -> bool:
        """Whether there are texts whose states have not come."""
        return bool(self._awaited)

    def begin(self) -> None:
        """Screen the embeddings, and the texts whose states will not come or don't tell all."""
        for row, verdicts in zip(self._rows, self._of_embeddings, strict=True):
            if row.embeddings:
                verdicts += self._embeddings_verdicts(row)
        if self._fitting is not None:
            # Not beside embeddings: the pipeline doesn't encode the text then.
            for text in dict.fromkeys(r.texts.get("prompt", "") for r in self._rows if not r.embeddings):
                if text:
                    self._awaited.setdefault(self._ids(text), []).append(text)
        awaited = {text for texts in self._awaited.values() for text in texts}
        for text in dict.fromkeys(text for row in self._rows for text in row.texts.values() if text):
            if text not in awaited and not self._settings.allow_unscreened:
                self._refuse_learned_tokens(text)
        ids_of = {text: ids for ids, texts in self._awaited.items() for text in texts}
        self._screen_texts(
            text
            for text in dict.fromkeys(text for row in self._rows for text in row.texts.values() if text)
            if text not in ids_of or not self._states_tell_all(text, ids_of[text])
        )

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """While the pipeline encodes."""
        token = listening.set(self if self._awaited else None)
        try:
            yield
        finally:
            listening.reset(token)

    def finish(self) -> None:
        """Encode the texts whose states did not come by the guard's own encoder."""
        missing = [text for texts in self._awaited.values() for text in texts]
        self._awaited.clear()
        for text in missing:
            if not self._settings.allow_unscreened:
                self._refuse_learned_tokens(text)
        self._screen_texts(text for text in missing if text not in self._found)

    def verdicts(self) -> list[Verdict | None]:
        """Of each row the verdict furthest above its threshold; None for an empty row, or one let pass unscreened."""
        return [
            max(
                [*found, *(verdict for text in row.texts.values() for verdict in self._found.get(text, ()))],
                key=lambda verdict: (verdict.blocked, verdict.margin),
                default=None,
            )
            for row, found in zip(self._rows, self._of_embeddings, strict=True)
        ]

    # What hooks.Listener asks for.

    def wants_hidden_states(self) -> bool:
        """Whether the guard's encoder uses states of layers before the last one."""
        return self._fitting is not None and self._fitting.layers != (self._fitting.depth,)

    def hear(self, ids: Tensor, output: Any) -> None:
        """Score the rows that are awaited among what the text encoder has just computed."""
        encoder = self._fitting
        if encoder is None or not self._awaited:
            return
        for place, read in enumerate(tuple(row) for row in ids.tolist()):
            texts = self._awaited.pop(read, None)
            if texts is None:
                continue
            hidden = torch.cat(
                [
                    (output.last_hidden_state if layer == encoder.depth else output.hidden_states[layer])[place].float()
                    for layer in encoder.layers
                ],
                dim=-1,
            )
            states = _one_window(hidden, self._length(read), encoder.pad_to_window)
            with _unheard():
                for text in texts:
                    # The names that the text spells out are sought in all of it, cut or not.
                    self._found.setdefault(text, []).extend(self._guard.check_states(states, [text]))
        if not self._awaited and self._on_complete is not None:
            self._on_complete()

    def _screen_texts(self, texts: Iterator[str]) -> None:
        wanted = list(texts)
        with _unheard():
            for text, verdict in zip(wanted, self._guard.check_batch(wanted), strict=True):
                self._found.setdefault(text, []).append(verdict)

    def _ids(self, text: str) -> tuple[int, ...]:
        """The ids that the pipeline will give its text encoder for a text."""
        tokenizer = self._pipe.tokenizer
        if hasattr(self._pipe, "maybe_convert_prompt"):
            text = self._pipe.maybe_convert_prompt(text, tokenizer)
        read = tokenizer(text, padding="max_length", max_length=tokenizer.model_max_length, truncation=True)
        return tuple(read.input_ids)

    def _states_tell_all(self, text: str, ids: tuple[int, ...]) -> bool:
        """Whether the states of the pipeline's ids are those that the guard would compute for the text.

        They are not where the text is cut, has tricks of spelling, forged special or learned tokens, or where LoRA has
        changed the encoder. The text is then screened as well, and the worse verdict counts.
        """
        encoder = self._fitting
        if encoder is None or is_changed_by_lora(self._pipe.text_encoder, self._pipe):
            return False
        windows = encoder.windows(normalize(text))
        if len(windows) != 1 or ids[: len(windows[0].ids)] != windows[0].ids:
            return False
        padding = ids[len(windows[0].ids) :]
        if encoder.pad_to_window:
            return len(ids) == encoder.window and all(token == encoder.pad_id for token in padding)
        return len(set(padding)) <= 1

    def _length(self, ids: tuple[int, ...]) -> int:
        """How many of the ids stand for the text: all up to the last one that is not padding, its end included."""
        end = len(ids)
        while end > 1 and ids[end - 2] == ids[-1]:
            end -= 1
        # What repeats at the end is the end-of-text token itself, or a padding token behind it.
        return end if ids[-1] == self._pipe.tokenizer.eos_token_id else max(1, end - 1)

    def _refuse_learned_tokens(self, text: str) -> None:
        """UnscreenedError if a text holds a token of a textual inversion, whose meaning is not in its letters."""
        for name in _TOKENIZERS:
            tokenizer = getattr(self._pipe, name, None)
            if tokenizer is None:
                continue
            learned = set(tokenizer.get_added_vocab()) - set(tokenizer.all_special_tokens)
            if any(token in text for token in learned):
                raise UnscreenedError(
                    "a prompt uses a token of a textual inversion, which only a guard on the pipeline's own text "
                    "encoder can screen; guard the pipeline with allow_unscreened=True to let such prompts pass"
                )

    def _embeddings_verdicts(self, row: Row) -> list[Verdict]:
        """The verdicts on a row's embeddings; UnscreenedError where nothing tells what they say."""
        receipts = {name: self._settings.receipts.find(tensor) for name, tensor in row.embeddings.items()}
        if all(texts is not None for texts in receipts.values()):
            texts = dict.fromkeys(text for found in receipts.values() for text in found or () if text)
            with _unheard():
                return self._guard.check_batch(texts)
        states = self._states_in(row.embeddings.get("prompt_embeds"))
        if states is not None:
            with _unheard():
                return [
                    _worst(self._guard.check_states(readings, [None] * len(readings.hidden))) for readings in states
                ]
        if self._settings.allow_unscreened:
            return []
        raise UnscreenedError(
            "prompt_embeds can't be screened: they are not what this pipeline's encode_prompt gave, and the guard's "
            "encoder can't read them; give the prompt, or guard the pipeline with allow_unscreened=True"
        )

    def _states_in(self, embeddings: Tensor | None) -> list[TokenStates] | None:
        """The readings of each window in embeddings [L, D] as states; None where they don't hold the states needed."""
        encoder = self._fitting
        if encoder is None or embeddings is None:
            return None
        tower: Any = clip_text_tower(self._pipe.text_encoder)
        width, length = tower.config.hidden_size, encoder.window
        if embeddings.ndim != 2 or len(embeddings) % length:
            return None
        second = clip_text_tower(getattr(self._pipe, "text_encoder_2", None))
        others = [name for name in ("text_encoder_2", "text_encoder_3") if getattr(self._pipe, name, None) is not None]
        if not others and embeddings.shape[1] == width:
            layers = {encoder.depth: embeddings}
        elif (
            others == ["text_encoder_2"]
            and second is not None
            and (embeddings.shape[1] == width + second.config.hidden_size)
        ):
            before = embeddings[:, :width].reshape(-1, length, width)
            layers = {encoder.depth - 1: before.flatten(0, 1), encoder.depth: last_layer(tower, before).flatten(0, 1)}
        else:
            return None
        if not set(encoder.layers) <= set(layers):
            return None
        hidden = torch.cat([layers[layer].float() for layer in encoder.layers], dim=-1)
        return [_readings(window, encoder.pad_to_window) for window in torch.split(hidden, length)]


@torch.no_grad()
def last_layer(tower: Any, hidden: Tensor) -> Tensor:
    """The last states [B, L, D] of a CLIP text tower, its final norm applied, from those of the layer before."""
    weight = tower.final_layer_norm.weight
    hidden = hidden.to(weight.device, weight.dtype) if weight.device.type != "meta" else hidden
    length = hidden.shape[1]
    causal = torch.full((length, length), torch.finfo(hidden.dtype).min, dtype=hidden.dtype, device=hidden.device)
    output = tower.encoder.layers[-1](hidden, causal.triu(1)[None, None].expand(len(hidden), -1, -1, -1))
    if isinstance(output, tuple):
        output = output[0]
    normed: Tensor = tower.final_layer_norm(output)
    return normed


def _one_window(hidden: Tensor, length: int, pad_to_window: bool) -> TokenStates:
    """The states of one window [1, L, D], `length` tokens of which are text."""
    mask = torch.arange(len(hidden), device=hidden.device) < (len(hidden) if pad_to_window else length)
    return TokenStates(hidden[None], mask[None], hidden[length - 1][None])


def _readings(hidden: Tensor, pad_to_window: bool) -> TokenStates:
    """A window [L, D] of unknown text, read once for each place where the text may end: [L - 1, L, D].

    The true reading is among them, so that the worst of their verdicts is at least that of the text.
    """
    length = len(hidden)
    ends = torch.arange(1, length, device=hidden.device)
    mask = (
        torch.arange(length, device=hidden.device)[None]
        <= (torch.full_like(ends, length) if pad_to_window else ends)[:, None]
    )
    return TokenStates(hidden[None].expand(length - 1, -1, -1), mask, hidden[ends])


def _worst(verdicts: Sequence[Verdict]) -> Verdict:
    return max(verdicts, key=lambda verdict: (verdict.blocked, verdict.margin))


@contextlib.contextmanager
def _unheard() -> Iterator[None]:
    """While the guard works: its encoder may be the very model that is listened to."""
    token = listening.set(None)
    try:
        yield
    finally:
        listening.reset(token)
