"""One fine-tuning run through transformers' Trainer, the same for plain and for encrypted ids."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import transformers
from torch.utils.data import Sampler
from tqdm import tqdm
from transformers.trainer_pt_utils import get_length_grouped_indices

from privacy.errors import FinetuneError, MissingDependencyError
from privacy.passkey.tasks import Features, Tagging, Task

Precision = Literal["fp32", "bf16", "fp16"]

_WARMUP = 0.06  # of all steps, as in the recipe of RoBERTa for GLUE (Liu et al., 2019)
_WEIGHT_DECAY = 0.01
_CHECKPOINTS = 5  # in the course of a training
_LOSSES = 20


@dataclass(frozen=True)
class Hyperparameters:
    """How a model is trained: AdamW, with the learning rate falling linearly to zero after a short warm-up.

    epochs: may be a fraction. batch_size: examples a step. precision: of the matrix products. seed: of the new head,
    of dropout and of the data's order, which depends on nothing else.

    Raises:
        FinetuneError: a number is out of range.
    """

    epochs: float = 3.0
    batch_size: int = 32
    learning_rate: float = 5e-5
    precision: Precision = "fp32"
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.epochs < math.inf:
            raise FinetuneError("the number of epochs is not above 0")
        if self.batch_size < 1:
            raise FinetuneError("the batch size is not a whole number from 1")
        if not 0 < self.learning_rate < math.inf:
            raise FinetuneError("the learning rate is not above 0")
        if not 0 <= self.seed < 2**32:
            raise FinetuneError("the seed is not a whole number from 0 to 2^32 - 1")


@dataclass(frozen=True)
class Trained:
    """A trained model and what it makes of the evaluation data.

    predicted: as `Task.scores` takes it. loss: mean on the evaluation data, losses: of the training's course, as (step,
    mean since the one before). seconds, cpu_seconds: of the training alone; since the checkpoint if `resumed`.
    """

    model: Any
    predicted: np.ndarray
    loss: float
    losses: list[tuple[int, float]]
    seconds: float
    cpu_seconds: float
    resumed: bool


def check_dependencies(task: Task[Any]) -> None:
    """Raises MissingDependencyError if what trains or measures is missing, before time is spent on anything."""
    if not transformers.utils.is_accelerate_available():
        raise MissingDependencyError("training needs accelerate: pip install accelerate")
    task.require()


def load_tokenizer(place: str | Path, task: Task[Any]) -> Any:
    """The tokenizer of a model. Raises FinetuneError if there is none, or none that can tell tokens' subwords."""
    # A token in a list stands for a word after a space, which byte-level tokenizers have to be told.
    options = {"add_prefix_space": True} if isinstance(task, Tagging) else {}
    try:
        with quiet():
            tokenizer = transformers.AutoTokenizer.from_pretrained(place, local_files_only=True, **options)
    except Exception as error:  # transformers raises whatever its parsers do
        raise FinetuneError(f"{place}: its tokenizer can't be read: {_first_line(error)}") from error
    if options and not tokenizer.is_fast:
        raise FinetuneError(f"{place}: tagging needs a tokenizer of the tokenizers library")
    return tokenizer


def load_model(folder: str | Path, task: Task[Any], labels: list[str] | None, classes: int, seed: int) -> Any:
    """The model of `folder` with a new head for `task`, in float32; equal seeds give equal heads.

    labels: the classes' names for the model's configuration; None keeps them out of it.

    Raises:
        FinetuneError: there is no model, or none for this kind of task.
    """
    options: dict[str, Any] = {"num_labels": classes} if classes else {}
    if labels:
        options["id2label"] = dict(enumerate(labels))
        options["label2id"] = {label: place for place, label in enumerate(labels)}
    transformers.set_seed(seed)
    try:
        with quiet():
            return getattr(transformers, task.model_class).from_pretrained(
                # A head for other classes that the model may have had is of no use.
                folder,
                local_files_only=True,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,
                **options,
            )
    except (OSError, ValueError) as error:
        raise FinetuneError(f"{folder}: can't be loaded for this task: {_first_line(error)}") from error


def train(
    model: Any,
    tokenizer: Any,
    task: Task[Any],
    features: Features,
    evaluation: Features,
    how: Hyperparameters,
    max_length: int,
    checkpoints: Path,
    name: str,
) -> Trained:
    """Trains `model`, going on from the last whole checkpoint in `checkpoints` if there is one, and evaluates it.

    tokenizer: whose padding is used, and which stands beside the checkpoints. max_length: of generated texts. name: of
    the run, for the progress bar on a terminal.

    Raises:
        FinetuneError: the precision is not to be had on this machine, or the loss is no number any more.
    """
    arguments = _arguments(task, how, max_length, checkpoints, len(features))
    cls = _Seq2SeqTrainer if task.generates else _Trainer
    trainer = cls(
        model=model,
        args=arguments,
        data_collator=_collator(task, tokenizer, model),
        train_dataset=features,
        eval_dataset=evaluation,
        processing_class=tokenizer,
        preprocess_logits_for_metrics=None if task.generates else _classes,
    )
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.remove_callback(transformers.trainer_callback.ProgressCallback)
    trainer.add_callback(_Progress(name))
    last = _last_checkpoint(checkpoints)
    with quiet():
        seconds, cpu_seconds = time.perf_counter(), time.process_time()
        trainer.train(resume_from_checkpoint=None if last is None else str(last))
        seconds, cpu_seconds = time.perf_counter() - seconds, time.process_time() - cpu_seconds
        losses = [(each["step"], each["loss"]) for each in trainer.state.log_history if "loss" in each]
        if not all(math.isfinite(loss) for _, loss in losses):
            raise FinetuneError(f"{name}: the loss is no number any more: choose a lower --learning-rate")
        result = trainer.predict(evaluation)
    predicted = result.predictions
    if task.generates:  # batches are padded to one length with a value that stands for no token
        predicted = np.where(predicted < 0, tokenizer.pad_token_id, predicted)
    loss = float(result.metrics["test_loss"])
    return Trained(trainer.model, predicted, loss, losses, seconds, cpu_seconds, last is not None)


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps transformers from bars and from notes on what is meant to be: that a head is new, say."""
    logging = transformers.utils.logging
    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()


class _EpochSampler(Sampler[int]):
    """Length-grouped batches whose order depends on seed and epoch alone, so that a resumed training meets the same."""

    def __init__(self, lengths: list[int], batch_size: int, seed: int) -> None:
        self._lengths, self._batch_size, self._seed, self._epoch = lengths, batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed + self._epoch)
        return iter(get_length_grouped_indices(self._lengths, self._batch_size, generator=generator))


class _InEpochOrder:
    """A Trainer that takes its training data from `_EpochSampler`."""

    args: Any
    train_dataset: Any

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        lengths = [len(each["input_ids"]) for each in train_dataset or self.train_dataset]
        return _EpochSampler(lengths, self.args.train_batch_size, self.args.seed)


class _Trainer(_InEpochOrder, transformers.Trainer):  # type: ignore[misc]  # transformers' types are not followed
    pass


class _Seq2SeqTrainer(_InEpochOrder, transformers.Seq2SeqTrainer):  # type: ignore[misc]
    pass


class _Progress(transformers.TrainerCallback):  # type: ignore[misc]
    """A bar with the loss on a terminal, and nothing anywhere else."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._bar: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._bar = tqdm(total=state.max_steps, initial=state.global_step, desc=self._name, unit="step", disable=None)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._bar.update(state.global_step - self._bar.n)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if logs and "loss" in logs and self._bar is not None:
            self._bar.set_postfix(loss=f"{logs['loss']:.3f}")

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._bar.close()


def _arguments(task: Task[Any], how: Hyperparameters, max_length: int, checkpoints: Path, examples: int) -> Any:
    on_cpu = not torch.accelerator.is_available()
    if how.precision == "fp16" and on_cpu:
        raise FinetuneError("fp16 needs a GPU; on a CPU choose fp32 or bf16")
    steps = math.ceil(math.ceil(examples / how.batch_size) * how.epochs)
    cls = transformers.Seq2SeqTrainingArguments if task.generates else transformers.TrainingArguments
    generating = {"predict_with_generate": True, "generation_max_length": max_length} if task.generates else {}
    return cls(
        output_dir=str(checkpoints),
        num_train_epochs=how.epochs,
        per_device_train_batch_size=how.batch_size,
        per_device_eval_batch_size=how.batch_size,
        learning_rate=how.learning_rate,
        weight_decay=_WEIGHT_DECAY,
        warmup_steps=round(_WARMUP * steps),
        seed=how.seed,
        bf16=how.precision == "bf16",
        fp16=how.precision == "fp16",
        use_cpu=on_cpu,
        dataloader_pin_memory=not on_cpu,
        logging_steps=max(steps // _LOSSES, 1),
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=max(steps // _CHECKPOINTS, 1),
        save_total_limit=1,
        report_to="none",
        disable_tqdm=True,
        **generating,
    )


def _collator(task: Task[Any], tokenizer: Any, model: Any) -> Any:
    if task.generates:
        return transformers.DataCollatorForSeq2Seq(tokenizer, model)
    if isinstance(task, Tagging):
        return transformers.DataCollatorForTokenClassification(tokenizer)
    return transformers.DataCollatorWithPadding(tokenizer)


def _classes(logits: Any, labels: Any) -> Any:
    """The likeliest class, so that no logits pile up during evaluation. Some models give states beside the logits."""
    return (logits[0] if isinstance(logits, tuple) else logits).argmax(dim=-1)


def _last_checkpoint(checkpoints: Path) -> Path | None:
    """The last checkpoint that was written whole: its state is written last. Others are removed."""
    whole: dict[int, Path] = {}
    for folder in checkpoints.glob("checkpoint-*"):
        if (folder / "trainer_state.json").is_file():
            whole[int(folder.name.rpartition("-")[2])] = folder
        else:
            shutil.rmtree(folder)
    return whole[max(whole)] if whole else None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
