"""Text encoders of the Hugging Face format, by hub id or folder: CLIP text towers, BERT-like and T5 encoders.

Weights are read from safetensors alone and no code of a repository is run. A folder needs no network.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from tokenizers import Tokenizer
from torch import Tensor
from transformers.utils import cached_file
from transformers.utils import logging as transformers_logging

from latentguard.encoders.base import (
    Pooling,
    Precision,
    TokenStates,
    Window,
    chosen_layers,
    last_state,
    mean_pool,
    pad_windows,
)
from latentguard.encoders.tokenization import WindowTokenizer
from latentguard.encoders.torch_runtime import TorchRuntime, to_device
from latentguard.errors import EncoderError

_CLIP = frozenset({"clip", "clip_text_model"})
_T5 = {
    "t5": transformers.T5EncoderModel,
    "mt5": transformers.MT5EncoderModel,
    "umt5": transformers.UMT5EncoderModel,
}
_BERT_LIKE = frozenset(
    {
        *("albert", "bert", "camembert", "deberta", "deberta-v2", "distilbert", "electra", "modernbert", "mpnet"),
        *("nomic_bert", "roberta", "xlm-roberta"),
    }
)
# These number their positions from one beyond the padding token's id, and so have fewer than they say.
_POSITIONS_AFTER_PADDING = frozenset({"camembert", "mpnet", "roberta", "xlm-roberta"})
_NO_LIMIT = 100_000  # a tokenizer without a limit of its own gives some 10^30
_LONGEST = 512  # window of an encoder whose files set no limit: relative positions go on, its training didn't
_FAILURES = (
    OSError,
    ValueError,
    KeyError,
    ImportError,
    RuntimeError,
    SafetensorError,
)  # what transformers raises for a bad repository


class HuggingFaceEncoder:
    """A text encoder in transformers, named "hf:PLACE" after a hub id or a folder.

    model: the transformers model, a CLIP text tower without its projection. pad_id: the padding token's id.
    layers: as for `load_encoder`. Where the model ends in a norm (CLIP, T5, ModernBERT), the last layer's states are
    those after it, and no other layer's are normed. precision: that asked for, or None for the model's own.

    CLIP text towers: `hidden` is by default the last layer, `pooled` that state at the end-of-text token
    (`pooler_output`), before any projection; windows of 77. BERT-like encoders: mean pooling, or that of the first
    token where the repository's sentence-transformers settings say so. T5 encoders: mean pooling.

    pad_to_window, for CLIP alone: every window is padded to its full length with the tokenizer's padding token, and
    `mask` is True at the padding too, since the published Latent Guard attends over all 77 positions. A CLIP tower
    never gets an attention mask, here as there: its causal mask keeps padding, which comes last, from touching the
    real tokens and `pooled`.

    A tokenizer that only exists in Python gives no character offsets, and is refused. Raises EncoderError when the
    place can't be read, is incomplete, has no safetensors, or is no text encoder (the message names its class).
    """

    precision: Precision | None = None

    def __init__(
        self,
        place: str,
        *,
        device: torch.device,
        pad_to_window: bool = False,
        precision: Precision | None = None,
        threads: int | None = None,
        layers: Sequence[int] | None = None,
        compiler: str | None = None,
    ) -> None:
        self.name = f"hf:{place}"
        self.device = device
        if place.startswith(("/", ".")) and not Path(place).is_dir():
            raise EncoderError(f"{self.name}: no such folder")
        config = self._read(transformers.AutoConfig, place)
        kind = config.model_type
        self._causal = kind in _CLIP
        if pad_to_window and not self._causal:
            raise EncoderError(f"{self.name}: pad_to_window is for CLIP text towers, not for {type(config).__name__}")
        if precision == "fp16" and kind in _T5:
            raise EncoderError(f"{self.name}: T5 encoders overflow in fp16; use bf16")
        runtime = TorchRuntime(self.name, device, precision, threads, compiler)
        self.precision = precision
        model = runtime.frozen(self._load_model(place, config))
        settings = {} if self._causal or kind in _T5 else _sentence_settings(place)
        pooling: Pooling = "eos" if self._causal else self._sentence_pooling(settings)
        tokenizer = self._read(transformers.AutoTokenizer, place)
        self._set_up(model, tokenizer, runtime, layers, pooling, pad_to_window, settings.get("max_seq_length"))

    @classmethod
    def from_model(
        cls,
        model: Any,
        tokenizer: Any,
        *,
        name: str,
        pad_to_window: bool = False,
        layers: Sequence[int] | None = None,
    ) -> HuggingFaceEncoder:
        """An encoder around a CLIP text tower that is already loaded, such as a diffusers pipeline's: no second copy.

        The model is neither moved nor changed; it runs where it is, in the precision that it has. The tokenizer is
        copied. ``name`` is what weights for this encoder record, such as "hf:openai/clip-vit-large-patch14".

        Raises:
            EncoderError: the model is no CLIP text tower, or the tokenizer is not a fast one.
        """
        tower = clip_text_tower(model)
        if tower is None:
            raise EncoderError(f"{name}: {type(model).__name__} is not a CLIP text tower")
        encoder = cls.__new__(cls)
        encoder.name, encoder._causal = name, True
        place = _placed_on(tower)
        encoder.device = torch.device("cpu") if place.type == "meta" else place
        runtime = TorchRuntime(name, encoder.device, None, None)
        encoder._set_up(tower, tokenizer, runtime, layers, "eos", pad_to_window, None)
        return encoder

    @classmethod
    def for_windows(
        cls,
        place: str,
        *,
        name: str,
        device: torch.device,
        window: int,
        pad_id: int,
        pooling: Pooling,
        pad_to_window: bool = False,
        layers: Sequence[int] | None = None,
        threads: int | None = None,
    ) -> HuggingFaceEncoder:
        """An encoder for windows that somebody else makes; it has no tokenizer, and its `windows` raises EncoderError.

        What a tokenizer and its repository's settings would tell is given instead. Errors as for the class.
        """
        encoder = cls.__new__(cls)
        encoder.name, encoder.device = name, device
        config = encoder._read(transformers.AutoConfig, place)
        encoder._causal = config.model_type in _CLIP
        runtime = TorchRuntime(name, device, None, threads)
        encoder._set_model(runtime.frozen(encoder._load_model(place, config)), runtime, layers, pooling, pad_to_window)
        encoder.window, encoder.pad_id, encoder._tokenizer = window, pad_id, None
        return encoder

    def _set_up(
        self,
        model: Any,
        tokenizer: Any,
        runtime: TorchRuntime,
        layers: Sequence[int] | None,
        pooling: Pooling,
        pad_to_window: bool,
        longest: int | None,
    ) -> None:
        self._set_model(model, runtime, layers, pooling, pad_to_window)
        self._set_tokenizer(tokenizer, longest)

    def _set_model(
        self, model: Any, runtime: TorchRuntime, layers: Sequence[int] | None, pooling: Pooling, pad_to_window: bool
    ) -> None:
        self.model, self._runtime, self.pooling, self.pad_to_window = model, runtime, pooling, pad_to_window
        self._run = runtime.compiled(model)
        self.depth: int = model.config.num_hidden_layers
        self.layers = chosen_layers(self.name, layers, self.depth)
        self.width: int = model.config.hidden_size * len(self.layers)

    @property
    def tokenizer(self) -> WindowTokenizer:
        """What cuts texts into windows; EncoderError for an encoder :meth:`for_windows`."""
        if self._tokenizer is None:
            raise EncoderError(f"{self.name}: has no tokenizer, it takes windows of token ids alone")
        return self._tokenizer

    def windows(self, text: str) -> list[Window]:
        return self.tokenizer.windows(text)

    def encode_windows(self, windows: Sequence[Window]) -> TokenStates:
        ids, mask = pad_windows(windows, self.pad_id, length=self.window if self.pad_to_window else None)
        # Where the model is: one that a pipeline owns may have been moved since, or be spread over devices.
        place = _placed_on(self.model)
        inputs = {"input_ids": ids} if self._causal else {"input_ids": ids, "attention_mask": mask}
        if place.type != "meta":
            inputs = {name: to_device(tensor, place) for name, tensor in inputs.items()}
        with self._runtime.running():
            hidden = layer_states(self._run, self.model.config, self.layers, **inputs).to(self.device)
        mask = to_device(mask, self.device)
        if self.pooling == "eos":
            pooled = last_state(hidden, mask)
        elif self.pooling == "cls":
            pooled = hidden[:, 0]
        else:
            pooled = mean_pool(hidden, mask)
        return TokenStates(hidden, torch.ones_like(mask) if self.pad_to_window else mask, pooled)

    def encode(self, texts: Sequence[str]) -> TokenStates:
        return self.encode_windows([self.windows(text)[0] for text in texts])

    def _load_model(self, place: str, config: Any) -> Any:
        kind = config.model_type
        if kind in _CLIP:
            factory: Any = transformers.CLIPTextModel
        elif kind in _T5:
            factory = _T5[kind]
        elif kind in _BERT_LIKE and not getattr(config, "is_decoder", False):
            factory = transformers.AutoModel
        else:
            found = (getattr(config, "architectures", None) or [type(config).__name__])[0]
            raise EncoderError(f"{self.name}: {found} is not a text encoder; give a CLIP, BERT-like or T5 model")
        with quiet_transformers(progress=not Path(place).is_dir()):
            model, report = self._read(
                factory, place, use_safetensors=True, dtype=torch.float32, output_loading_info=True
            )
        # The pooler is not used, and checkpoints trained without one lack it.
        missing = sorted(key for key in report["missing_keys"] if not key.startswith("pooler."))
        if missing:
            raise EncoderError(f"{self.name}: the weights lack {len(missing)} tensors, the first of them {missing[0]}")
        return model

    def _set_tokenizer(self, tokenizer: Any, longest: int | None) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            raise EncoderError(f"{self.name}: {type(tokenizer).__name__} gives no offsets; a fast tokenizer is needed")
        if tokenizer.pad_token_id is None:
            raise EncoderError(f"{self.name}: its tokenizer has no padding token")
        self.pad_id: int = tokenizer.pad_token_id
        limits = [longest, tokenizer.model_max_length, _positions(self.model.config)]
        self.window: int = min([limit for limit in limits if limit and limit < _NO_LIMIT], default=_LONGEST)
        # A copy: WindowTokenizer changes it, and a pipeline may be using it.
        tokenizer_of_windows = WindowTokenizer(Tokenizer.from_str(backend.to_str()), window=self.window)
        self._tokenizer: WindowTokenizer | None = tokenizer_of_windows
        if self._causal and not tokenizer_of_windows.ends_with(tokenizer.eos_token_id):
            raise EncoderError(f"{self.name}: its tokenizer doesn't end a text with the end-of-text token")

    def _sentence_pooling(self, settings: dict[str, Any]) -> Pooling:
        chosen = {key for key, value in settings.items() if key.startswith("pooling_mode_") and value is True}
        if chosen == {"pooling_mode_cls_token"}:
            return "cls"
        if chosen <= {"pooling_mode_mean_tokens"}:
            return "mean"
        raise EncoderError(f"{self.name}: pools by {', '.join(sorted(chosen))}, which latentguard does not have")

    def _read(self, factory: Any, place: str, **options: Any) -> Any:
        """`factory.from_pretrained`, from the folder or the hub, with failures as an EncoderError of one line."""
        try:
            return factory.from_pretrained(
                place, local_files_only=Path(place).is_dir(), trust_remote_code=False, **options
            )
        except _FAILURES as error:
            reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise EncoderError(f"{self.name}: can't be loaded: {reason}") from error


def layer_states(run: Callable[..., Any], config: Any, layers: Sequence[int], **inputs: Tensor) -> Tensor:
    """The states [B, L, D] float32 of a transformers model's layers, side by side in the order given.

    ``run`` is the model of that ``config``, or what it was compiled to.
    """
    last = config.num_hidden_layers
    output = run(**inputs, output_hidden_states=tuple(layers) != (last,))
    # The last entry of `hidden_states` is the last layer before CLIP's final norm, but after that of others.
    states = [output.last_hidden_state if layer == last else output.hidden_states[layer] for layer in layers]
    return torch.cat([state.float() for state in states], dim=-1)


def clip_text_tower(model: Any) -> Any | None:
    """The CLIP text tower that a transformers model is or holds beneath its projection; None if it is neither."""
    tower = getattr(model, "text_model", model)
    return tower if isinstance(tower, transformers.CLIPTextModel) else None


def _placed_on(model: Any) -> torch.device:
    """The device of a model's parameters; "meta" where accelerate holds them elsewhere until they are needed."""
    device: torch.device = next(model.parameters()).device
    return device


def _positions(config: Any) -> int | None:
    """Most tokens that the model has positions for; None for relative positions without a limit."""
    positions: int | None = getattr(config, "max_position_embeddings", None)
    if positions is not None and config.model_type in _POSITIONS_AFTER_PADDING:
        positions -= int(config.pad_token_id) + 1
    return positions


def _sentence_settings(place: str) -> dict[str, Any]:
    """What sentence-transformers wrote beside the model: the trained length and the pooling; empty if nothing."""
    settings: dict[str, Any] = {}
    for file in ("sentence_bert_config.json", "1_Pooling/config.json"):
        path = cached_file(
            place,
            file,
            local_files_only=Path(place).is_dir(),
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        if path is not None:
            settings |= json.loads(Path(path).read_text(encoding="utf-8"))
    return settings


@contextlib.contextmanager
def quiet_transformers(*, progress: bool = False) -> Iterator[None]:
    """Keep a model's loading from reporting the tensors left out on purpose and, unless asked, from showing progress.

    Progress is worth showing where files may be downloaded.
    """
    verbosity, bar = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    if not progress:
        transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bar:
            transformers_logging.enable_progress_bar()
