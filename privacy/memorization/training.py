"""The loop of a fine-tuning: transformers' Trainer, resumed from its checkpoints, with a progress bar of our own."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from tqdm import tqdm

from privacy.errors import AuditedModelError
from privacy.memorization.collators import collator_for
from privacy.memorization.contrastive import ClipLogitScale, ContrastiveTrainer
from privacy.memorization.examples import Example
from privacy.memorization.models import Kind, default_device, quiet

_WARMUP = 0.03  # as LLaVA was trained, with a cosine after it
_CHECKPOINTS = 10
_LOSSES = 100
_MAX_WORKERS = 8


@dataclass(frozen=True)
class Schedule:
    """How long and how fast is trained: passes over the examples, examples a step, the highest learning rate."""

    epochs: float
    batch_size: int
    learning_rate: float
    seed: int
    bf16: bool
    gradient_checkpointing: bool


def train(
    model: Any, processor: Any, kind: Kind, examples: Sequence[Example], how: Schedule, checkpoints: Path
) -> list[tuple[int, float]]:
    """Trains `model` in place, going on from the last whole checkpoint in `checkpoints` if there is one.

    Returns the course of the loss, as pairs of step and mean since the one before. On a CPU, the same model, examples
    and schedule give the same weights, however often the training was interrupted.

    Raises:
        DataError: an image can't be read.
        AuditedModelError: the loss is no number any more.
    """
    cls = transformers.Trainer if kind == "vlm" else ContrastiveTrainer
    arguments = _arguments(kind, how, checkpoints, len(examples))
    with quiet():
        if how.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        trainer = cls(
            model=model, args=arguments, data_collator=collator_for(processor, kind), train_dataset=list(examples)
        )
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.add_callback(_Progress())
        if kind == "clip":
            trainer.add_callback(ClipLogitScale())
        last = _last_checkpoint(checkpoints)
        trainer.train(resume_from_checkpoint=None if last is None else str(last))
    losses = [(int(each["step"]), float(each["loss"])) for each in trainer.state.log_history if "loss" in each]
    if not all(math.isfinite(loss) for _, loss in losses):
        raise AuditedModelError("the loss is no number any more: choose a lower --lr")
    return losses


class _Progress(transformers.TrainerCallback):  # type: ignore[misc]  # transformers' types are not followed
    """A bar with the loss on a terminal, and nothing anywhere else."""

    _bar: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        steps, done = state.max_steps, state.global_step
        self._bar = tqdm(total=steps, initial=done, desc="fine-tuning", unit="step", disable=None)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._bar.update(state.global_step - self._bar.n)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if logs and "loss" in logs:
            self._bar.set_postfix(loss=f"{float(logs['loss']):.3f}")

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._bar.close()


def _arguments(kind: Kind, how: Schedule, checkpoints: Path, examples: int) -> Any:
    on_cpu = default_device().type == "cpu"
    # A last batch of one pair has nothing to contrast it with; and a smaller one has fewer negatives than the others.
    drops_last = kind == "clip" and examples > how.batch_size
    batches = examples // how.batch_size if drops_last else math.ceil(examples / how.batch_size)
    steps = math.ceil(batches * how.epochs)
    return transformers.TrainingArguments(
        output_dir=str(checkpoints),
        num_train_epochs=how.epochs,
        per_device_train_batch_size=how.batch_size,
        learning_rate=how.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=math.ceil(_WARMUP * steps),
        seed=how.seed,
        bf16=how.bf16,
        use_cpu=on_cpu,
        dataloader_pin_memory=not on_cpu,
        dataloader_num_workers=0 if on_cpu else min(_MAX_WORKERS, os.cpu_count() or 1),
        dataloader_drop_last=drops_last,
        remove_unused_columns=False,
        logging_steps=max(steps // _LOSSES, 1),
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=max(steps // _CHECKPOINTS, 1),
        save_total_limit=1,
        report_to="none",
        disable_tqdm=True,
    )


def _last_checkpoint(checkpoints: Path) -> Path | None:
    """The last checkpoint that was written whole: its state is written last. Others are removed."""
    whole: dict[int, Path] = {}
    for folder in checkpoints.glob("checkpoint-*"):
        if (folder / "trainer_state.json").is_file():
            whole[int(folder.name.rpartition("-")[2])] = folder
        else:
            shutil.rmtree(folder)
    return whole[max(whole)] if whole else None
