"""A causal language model that runs in this process, through transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from latentguard.errors import MissingDependencyError

from .backends import Answer, BackendError
from .instructions import Message
from .tally import Tally

_LEAST_NEW_TOKENS = 16


class LocalModel:
    """A causal language model by hub id or folder, sampled with a seed of its own for each answer.

    Weights are read from safetensors alone and no code of a repository is run. An instruction-tuned model gets the
    dialogue in its own chat template, another one as plain text. Raises BackendError for a model that can't be loaded,
    and MissingDependencyError without transformers.
    """

    backend = "transformers"
    parallel = 1

    def __init__(
        self,
        place: str,
        *,
        device: torch.device | str = "auto",
        new_tokens: int = 1024,
        temperature: float = 0.9,
        top_p: float = 0.95,
    ) -> None:
        self.name = place
        self._new_tokens = new_tokens
        self._sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self._tokenizer, self._model = _load(place)
        try:
            self._model = self._model.requires_grad_(False).eval().to(device)
        except (RuntimeError, AssertionError) as error:
            raise BackendError(f"{place}: can't be put on {device}") from error
        self._positions: int | None = getattr(self._model.config, "max_position_embeddings", None)

    def answer(self, messages: Sequence[Message], seed: int, tally: Tally) -> Answer:
        ids = self._ids(messages).to(self._model.device)
        room = self._new_tokens
        if self._positions is not None:
            room = min(room, self._positions - ids.shape[1])
            if room < _LEAST_NEW_TOKENS:
                raise BackendError(f"{self.name}: its {self._positions} positions are too few for the instructions")
        # The process's own random state is left as it was.
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(seed)
            written = self._model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=room,
                pad_token_id=self._tokenizer.pad_token_id or self._tokenizer.eos_token_id or 0,
                **self._sampling,
            )
        return Answer(self._tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True))

    def close(self) -> None:
        pass

    def _ids(self, messages: Sequence[Message]) -> torch.Tensor:
        if self._tokenizer.chat_template is None:
            text = "\n\n".join(f"{message['role'].upper()}: {message['content']}" for message in messages)
            return torch.as_tensor(self._tokenizer(text + "\n\nASSISTANT: ", return_tensors="pt").input_ids)
        text = self._tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, tokenize=False)
        return torch.as_tensor(self._tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids)


def _load(place: str) -> tuple[Any, Any]:
    try:
        import transformers

        from latentguard.encoders.huggingface import quiet_transformers
    except ImportError as error:
        raise MissingDependencyError(
            "the transformers back end needs transformers; install it with: pip install 'latentguard[synthesis]'"
        ) from error
    options = {"local_files_only": Path(place).is_dir(), "trust_remote_code": False}
    try:
        with quiet_transformers(progress=not Path(place).is_dir()):
            tokenizer = transformers.AutoTokenizer.from_pretrained(place, **options)
            model = transformers.AutoModelForCausalLM.from_pretrained(place, use_safetensors=True, **options)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise BackendError(f"{place}: can't be loaded: {reason}") from error
    return tokenizer, model
