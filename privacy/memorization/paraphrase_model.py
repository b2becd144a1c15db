"""Paraphrases by a local language model, of the encoder-decoder kind or of the causal one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import transformers

from privacy.errors import AuditedModelError
from privacy.memorization.models import default_device, first_line, quiet

_INSTRUCTION = (
    "Say the following in other words. Keep its meaning and every tag in angle brackets. Answer with the new wording "
    "alone.\n\n"
)
# What paraphrasers of the T5 family are commonly trained to read.
_TASK = "paraphrase: "
_MOST_NEW = 256


class LocalModel:
    """A paraphraser that runs a transformers model, without sampling: the same text gives the same answer.

    place: a folder or hub id of a text-to-text or causal model, with safetensors. A causal one with a chat template is
    asked in it, another one is given the instruction and the text, and its first line is taken. device: the accelerator
    if there is one, else the CPU, by default.

    Raises:
        AuditedModelError: it can't be read, has no safetensors, or writes no text.
    """

    def __init__(self, place: str, device: str | None = None) -> None:
        self._device = torch.device(device) if device else default_device()
        try:
            with quiet():
                config = transformers.AutoConfig.from_pretrained(place, trust_remote_code=False)
                self._encodes = bool(config.is_encoder_decoder)
                kind = transformers.AutoModelForSeq2SeqLM if self._encodes else transformers.AutoModelForCausalLM
                model, report = kind.from_pretrained(
                    place, use_safetensors=True, trust_remote_code=False, output_loading_info=True
                )
                self._tokenizer: Any = transformers.AutoTokenizer.from_pretrained(
                    place, padding_side="right" if self._encodes else "left", trust_remote_code=False
                )
        except Exception as error:  # transformers lets through whatever its many parsers raise
            raise AuditedModelError(f"{place}: can't be read as a model that writes: {first_line(error)}") from error
        if report["missing_keys"]:  # transformers would leave random numbers there
            raise AuditedModelError(f"{place}: its files lack {len(report['missing_keys'])} tensors")
        if self._tokenizer.pad_token_id is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        self._model: Any = model.to(self._device).eval()

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str]) -> list[str | None]:
        if not texts:
            return []
        inputs = self._tokenizer(
            [self._prompt(text) for text in texts],
            return_tensors="pt",
            padding=True,
            add_special_tokens=not self._chats,  # a chat template has them already
        ).to(self._device)
        inputs.pop("token_type_ids", None)
        written = self._model.generate(
            **inputs,
            max_new_tokens=_MOST_NEW,
            do_sample=False,
            num_beams=4,
            pad_token_id=self._tokenizer.pad_token_id,
        )
        if not self._encodes:
            written = written[:, inputs["input_ids"].shape[1] :]
        return [self._answer(tokens) for tokens in written]

    @property
    def _chats(self) -> bool:
        return not self._encodes and self._tokenizer.chat_template is not None

    def _prompt(self, text: str) -> str:
        if self._encodes:
            return _TASK + text
        if not self._chats:
            return f"{_INSTRUCTION}Text: {text}\nIn other words:"
        messages = [{"role": "user", "content": _INSTRUCTION + text}]
        return str(self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    def _answer(self, tokens: torch.Tensor) -> str | None:
        """What the model wrote; None if it came to no end."""
        text = str(self._tokenizer.decode(tokens, skip_special_tokens=True)).strip()
        if not self._encodes and not self._chats and "\n" in text:
            return text.partition("\n")[0]
        ends = self._model.generation_config.eos_token_id
        ended = torch.isin(tokens, torch.tensor(ends, device=tokens.device)).any() if ends is not None else False
        return text if ended else None
