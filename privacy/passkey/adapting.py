"""Adapting a converted model to its mapped embeddings: it learns, from text alone, to compute what the plain one does.

The key's owner has both models, so the plain one can teach the converted one (knowledge distillation, on the states of
every layer). No labels are needed, and any text of the kind that the model will read will do. Token embeddings stay as
they are: a map that was fine-tuned away would protect nothing.
"""

from __future__ import annotations

import math
import random
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from privacy.errors import ConversionError, DataError
from privacy.passkey.carrying import Readout, readouts
from privacy.passkey.convert import new_folder
from privacy.passkey.keys import PassKey, subkeys
from privacy.passkey.model_files import TextModel
from privacy.passkey.record import check_folder, write_record
from privacy.passkey.tokenizer_files import load_tokenizer
from privacy.passkey.vocabulary import EncryptedVocabulary, PlainVocabulary

_HELD_OUT = 256  # texts that are only measured, at most a tenth of all
_WARMUP = 50  # steps
_POOL = 50  # batches whose texts are sorted by length together
_BETAS = (0.9, 0.98)


@dataclass(frozen=True)
class Adaptation:
    """What `adapt` wrote and how near it came.

    folder: the new one. before, after: for each layer, on texts not trained on, the share of the variance of the plain
    model's states that the converted one's leave unexplained; 0 is the same states.
    """

    folder: Path
    before: tuple[float, ...]
    after: tuple[float, ...]


def adapt(
    original: str | Path,
    converted: str | Path,
    target: str | Path,
    passkey: PassKey,
    texts: Sequence[str],
    *,
    steps: int = 500,
    batch_size: int = 32,
    learning_rate: float = 5e-4,
    max_tokens: int = 64,
    device: str = "cpu",
    seed: int = 0,
) -> Adaptation:
    """Writes to the new folder `target` the converted encoder, trained to give the states of the original one.

    original: the folder that was converted. texts: plain ones; the same text may come several times. steps: batches of
    `batch_size` texts, of which `max_tokens` tokens each are read. learning_rate: of AdamW at its highest, after which
    it falls to 0 by a cosine.

    Raises:
        ConversionError: a folder can't be used, the two don't belong together, or the model is no encoder.
        WrongPasskeyError: the passkey is another one.
        DataError: there is no text, or `target` can't be written.
    """
    record = check_folder(converted)
    keys = subkeys(passkey, record.stretching)
    record.verify(keys)
    teacher, student = TextModel.load(original), TextModel.load(converted)
    plain = PlainVocabulary.of(tokenizer := load_tokenizer(original), teacher.rows)
    if plain.digest(keys.words) != record.vocabulary:
        raise ConversionError(f"{original}: is not the model that {converted} was made from")
    affine = record.transform.map(keys.transform, teacher.embeddings[0].shape[1], 1.0)
    backs = readouts(teacher.model, torch.from_numpy(affine.matrix.T)) if record.transform.maps_states else None
    lessons = _Lessons(teacher.model, student.model, EncryptedVocabulary.of(plain, keys), backs, device)
    batches = _Batches(_tokenized(tokenizer, texts, max_tokens), batch_size, seed)
    before = lessons.unexplained(batches.held_out())
    _train(lessons, batches, steps, learning_rate)
    after = lessons.unexplained(batches.held_out())
    with new_folder(Path(target)) as folder:
        for path in Path(converted).iterdir():
            if path.suffix != ".safetensors" and path.is_file():
                shutil.copyfile(path, folder / path.name)
        student.model.cpu().save_pretrained(folder, max_shard_size="1TB")
        for name in ("config.json", "generation_config.json"):
            if (Path(converted) / name).is_file():
                shutil.copyfile(Path(converted) / name, folder / name)
        write_record(folder, record)
    return Adaptation(Path(target), before, after)


class _Lessons:
    """The plain encoder and the converted one, and how far apart their states are."""

    def __init__(
        self,
        teacher: Any,
        student: Any,
        vocabulary: EncryptedVocabulary,
        backs: Sequence[Readout] | None,
        device: str,
    ) -> None:
        if teacher.config.is_encoder_decoder:
            raise ConversionError(f"{type(teacher).__name__}: only encoders are adapted; this map was carried exactly")
        self.teacher = _body(teacher).to(device).requires_grad_(False)
        self.student = _body(student).to(device).train()
        for module in self.student.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        self.student.requires_grad_(True).get_input_embeddings().requires_grad_(False)
        self._new = torch.from_numpy(vocabulary.new).to(device)
        self._backs = (
            None if backs is None else [Readout(back.weight.to(device), back.bias.to(device)) for back in backs]
        )
        self._device = device

    def shares(self, ids: Tensor, mask: Tensor) -> Tensor:
        """For each layer the unexplained share of the variance [layers] of one batch's states; ids, mask [B, L]."""
        ids, mask = ids.to(self._device), mask.to(self._device)
        with torch.no_grad():
            plain = _states(self.teacher, ids, mask)
        mapped = _states(self.student, self._new[ids], mask)
        if self._backs is not None:
            mapped = [state @ back.weight + back.bias for state, back in zip(mapped, self._backs, strict=True)]
        real = mask.bool()
        # The embeddings' own output is no part of it: under a carried map it is exact from the beginning.
        return torch.stack([_unexplained(a[real], b[real]) for a, b in zip(mapped[1:], plain[1:], strict=True)])

    @torch.no_grad()
    def unexplained(self, batches: Sequence[tuple[Tensor, Tensor]]) -> tuple[float, ...]:
        """The mean of `shares` over batches."""
        return tuple(torch.stack([self.shares(*batch) for batch in batches]).mean(dim=0).tolist())


def _train(lessons: _Lessons, batches: _Batches, steps: int, learning_rate: float) -> None:
    trained = [parameter for parameter in lessons.student.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, betas=_BETAS, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / _WARMUP) * (1 + math.cos(math.pi * step / steps)) / 2
    )
    endless = batches.endless()
    progress = tqdm(range(steps), desc="adapting", unit="batch", disable=None)
    for _ in progress:
        loss = lessons.shares(*next(endless)).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        progress.set_postfix(unexplained=f"{loss.item():.3f}", refresh=False)


class _Batches:
    """Token ids of texts in padded batches of similar length; some are kept apart for measuring."""

    def __init__(self, ids: Sequence[Sequence[int]], size: int, seed: int) -> None:
        shuffled = list(ids)
        self._rng = random.Random(seed)
        self._rng.shuffle(shuffled)
        held_out = min(_HELD_OUT, max(1, len(shuffled) // 10))
        self._held_out, self._trained = shuffled[:held_out], shuffled[held_out:]
        self._size = size

    def held_out(self) -> list[tuple[Tensor, Tensor]]:
        """Ids and mask [B, L] of the texts that are never trained on."""
        return [_padded(self._held_out[i : i + self._size]) for i in range(0, len(self._held_out), self._size)]

    def endless(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches without end, each text once before any comes again."""
        while True:
            self._rng.shuffle(self._trained)
            for start in range(0, len(self._trained), self._size * _POOL):
                pool = sorted(self._trained[start : start + self._size * _POOL], key=len)
                batches = [pool[i : i + self._size] for i in range(0, len(pool), self._size)]
                self._rng.shuffle(batches)
                yield from map(_padded, batches)


def _tokenized(tokenizer: Any, texts: Sequence[str], max_tokens: int) -> list[list[int]]:
    if len(texts) < 2:
        raise DataError("adapting needs at least two texts: one to train on and one to measure with")
    ids: list[list[int]] = tokenizer(list(texts), truncation=True, max_length=max_tokens)["input_ids"]
    return ids


def _padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    # What stands where there is no token is never looked at, so any id will do.
    longest = max(map(len, rows))
    ids, mask = torch.zeros(len(rows), longest, dtype=torch.long), torch.zeros(len(rows), longest, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = 1
    return ids, mask


def _states(body: Any, ids: Tensor, mask: Tensor) -> list[Tensor]:
    output = body(input_ids=ids, attention_mask=mask, output_hidden_states=True)
    # CLIP's last hidden state has passed the final norm, its last entry of hidden_states hasn't.
    return [*output.hidden_states[:-1], output.last_hidden_state]


def _unexplained(states: Tensor, targets: Tensor) -> Tensor:
    """The share of the targets' variance [N, D] about their mean that the states leave."""
    return ((states - targets) ** 2).sum() / ((targets - targets.mean(dim=0)) ** 2).sum()


def _body(model: Any) -> Any:
    return getattr(model, model.base_model_prefix, model)
