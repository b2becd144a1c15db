"""Fine-tuning with and without encryption, compared.

The encrypted run gets the same data in the same order and starts from the same head. Text meets the passkey before the
trainer: what that is given, and what it saves, are encrypted ids and class numbers.

The folder of the results:
    results.json   settings, names of the classes, and each finished run; for the owner of the data
    plain/         the plain model and its tokenizer
    encrypted/     the encrypted model, its tokenizer and passkey.json: what a server needs
While the work goes on, there are converted/ and checkpoints/ as well, which a resumed work goes on from.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from privacy.errors import FinetuneError
from privacy.files import write_error
from privacy.passkey.client import PasskeyClient
from privacy.passkey.convert import convert
from privacy.passkey.data import held_out, read_rows, subset
from privacy.passkey.record import check_folder, read_record, write_record
from privacy.passkey.results import Results, Run, Settings, open_results, write_results
from privacy.passkey.tasks import TASKS, Features, Task
from privacy.passkey.training import check_dependencies, load_model, load_tokenizer, quiet, train
from privacy.passkey.transforms import Transform

if TYPE_CHECKING:
    from privacy.passkey.keys import PassKey


@dataclass(frozen=True)
class _Side:
    """What differs between the runs.

    start: the model's folder. tokenizer: the one it is trained and saved with. class_names: those that its
    configuration may hold. encrypt, decrypt: ids [...] to those that this model reads, and back.
    """

    name: str
    encryption: str
    start: Path
    tokenizer: Any
    class_names: list[str] | None
    encrypt: Callable[[Any], Any]
    decrypt: Callable[[Any], Any]


@dataclass(frozen=True)
class _Data:
    """Examples to train on and to measure with, and what the plain model would be given for each."""

    train: Features
    measured: list[Any]
    evaluation: Features
    labels: list[str]
    max_length: int


def finetune(
    settings: Settings,
    output: str | Path,
    passkey: PassKey | None = None,
    *,
    plain: bool = False,
    resume: bool = False,
) -> Results:
    """Fine-tunes a model on encrypted text if there is a `passkey`, and on plain text if `plain`; with both, compares.

    output: a new folder, see above. resume: go on with what is there already, from the last checkpoint.

    Raises:
        DataError: the data can't be used, or `output` can't be written or is there already.
        FinetuneError: the model doesn't fit the task, or what is to be resumed had other settings.
        PasskeyError: the model can't be converted, or the passkey is the wrong one.
        MissingDependencyError: a package is missing that trains, reads the data or computes the metric.
    """
    if passkey is None and not plain:
        raise FinetuneError("an encrypted training needs a passkey")
    task, folder = TASKS[settings.task], Path(output)
    check_dependencies(task)
    tokenizer = load_tokenizer(settings.model, task)
    data = _data(task, settings, tokenizer)
    results = open_results(folder, Results(settings, (len(data.train), len(data.measured)), data.labels, []), resume)
    done = _done(results)
    sides = []  # made before any training, so that a wrong passkey shows at once
    if plain and "plain" not in done:
        sides.append(_Side("plain", "none", Path(settings.model), tokenizer, data.labels, _same, _same))
    if passkey is not None and "encrypted" not in done:
        sides.append(_encrypted_side(settings, task, folder, passkey))
    for side in sides:
        results.runs.append(_run(side, task, settings, data, tokenizer, folder))
        write_results(folder, results)
    _tidy(folder, _done(results))
    return results


def _done(results: Results) -> set[str]:
    return {"plain" if run.encryption == "none" else "encrypted" for run in results.runs}


def _tidy(folder: Path, done: set[str]) -> None:
    """Removes what finished runs have no more use for, and nothing that another may go on from."""
    for name in done:
        shutil.rmtree(folder / "checkpoints" / name, ignore_errors=True)
    if "encrypted" in done:
        shutil.rmtree(folder / "converted", ignore_errors=True)
    with suppress(OSError):  # it isn't empty, or wasn't made
        (folder / "checkpoints").rmdir()


def _data(task: Task[Any], settings: Settings, tokenizer: Any) -> _Data:
    columns = settings.columns or task.columns
    rows = read_rows(settings.train, columns, split="train")
    train_on = task.examples(rows)
    labels = task.labels(train_on)
    if settings.hold_out is not None:
        train_on, measured = held_out(train_on, settings.hold_out, settings.how.seed)
    else:
        rows = read_rows(str(settings.evaluation), columns, split="validation")
        measured = task.examples(rows)
        task.check(rows, measured, labels)
    train_on = subset(train_on, settings.limit, settings.how.seed)
    train_on, measured = _prefixed(train_on, settings.prefix), _prefixed(measured, settings.prefix)
    length = min(settings.max_length, tokenizer.model_max_length)
    given = [task.features(tokenizer, part, labels, length) for part in (train_on, measured)]
    return _Data(given[0], measured, given[1], labels, length)


def _prefixed(examples: list[Any], prefix: str) -> list[Any]:
    return [replace(each, source=prefix + each.source) for each in examples] if prefix else examples


def _encrypted_side(settings: Settings, task: Task[Any], folder: Path, passkey: PassKey) -> _Side:
    start = Path(settings.converted) if settings.converted else folder / "converted"
    if not settings.converted and not start.exists():
        with quiet():
            convert(
                settings.model,
                start,
                passkey,
                transform=settings.transform.kind,
                factor=settings.transform.factor,
                noise=settings.transform.noise,
                carry=settings.transform.carried,
            )
    client = PasskeyClient(settings.model, passkey, start)
    check_folder(start)
    encryption = _described(client.record.transform, task) + (f" ({start.name})" if settings.converted else "")
    tokenizer = load_tokenizer(start, task)
    return _Side("encrypted", encryption, start, tokenizer, None, client.encrypted_ids, client.plain_ids)


def _run(side: _Side, task: Task[Any], settings: Settings, data: _Data, tokenizer: Any, folder: Path) -> Run:
    model = load_model(side.start, task, side.class_names, len(data.labels), settings.how.seed)
    checkpoints = folder / "checkpoints" / side.name
    train_on, evaluation = (_encrypted(side, task, part) for part in (data.train, data.evaluation))
    trained = train(
        model, side.tokenizer, task, train_on, evaluation, settings.how, data.max_length, checkpoints, side.name
    )
    _save(side, trained.model, folder / side.name)
    predicted = side.decrypt(trained.predicted) if task.generates else trained.predicted
    return Run(
        side.encryption,
        task.scores(tokenizer, data.measured, data.labels, data.evaluation, predicted),
        trained.loss,
        trained.losses,
        trained.seconds,
        trained.cpu_seconds,
        trained.resumed,
    )


def _described(transform: Transform, task: Task[Any]) -> str:
    kinds = {"none": "permutation", "glide": f"glide ×{transform.factor}", "orthogonal": "orthogonal"}
    parts = [kinds[transform.kind]]
    if transform.kind != "none" and not transform.carried:
        # See `convert`: the rows that give each token's logit were the plain embeddings when the training began.
        parts.append("not carried, plain output rows" if task.generates else "not carried")
    if transform.noise:
        parts.append(f"noise {transform.noise:g}")
    return ", ".join(parts)


def _same(ids: Any) -> Any:
    return ids


def _encrypted(side: _Side, task: Task[Any], features: Features) -> Features:
    """The features with their ids, and with those that the model is to generate, as `side` has them."""
    fields = ("input_ids", "labels") if task.generates else ("input_ids",)
    return [{**each, **{name: np.asarray(side.encrypt(each[name])).tolist() for name in fields}} for each in features]


def _save(side: _Side, model: Any, target: Path) -> None:
    """Writes model and tokenizer, and the record of an encrypted one, to a folder that is complete or not there."""
    temporary = target.with_name(f".tmp-{secrets.token_hex(8)}")
    try:
        with quiet():
            model.save_pretrained(temporary)
            side.tokenizer.save_pretrained(temporary)
        if side.name == "encrypted":
            write_record(temporary, read_record(side.start))
        if target.exists():  # from a work that was interrupted right here
            shutil.rmtree(target)
        os.replace(temporary, target)
    except OSError as error:
        raise write_error(target, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
