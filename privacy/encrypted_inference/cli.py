"""The commands: keys and queries for a client, answers for a server; training, measuring, benchmarks."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from privacy.encrypted_inference.data import DIGITS, LabelledImages, load_images, load_picture
from privacy.encrypted_inference.weights import (
    Architecture,
    load_architecture,
    model_folder,
    shipped_names,
)
from privacy.errors import DataError, PrivacyError
from privacy.files import atomic_path, read_error

_MOST_BYTES = 1 << 30


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit status: 0, or 2 for a mistake in the input, told in one line."""
    parser = argparse.ArgumentParser(
        prog="python -m privacy.encrypted_inference", description="Classify images that stay encrypted."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _client_commands(commands)
    _server_commands(commands)
    _model_commands(commands)
    given = parser.parse_args(arguments)
    try:
        given.run(given)
    except PrivacyError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _client_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    encrypt = commands.add_parser("encrypt", help="encrypt pictures; makes the client's keys if there are none")
    encrypt.add_argument("pictures", nargs="+", type=Path, metavar="PICTURE")
    encrypt.add_argument("--secret", type=Path, required=True, help="the secret key's file; made with mode 0600 if new")
    encrypt.add_argument("--keys", type=Path, help="where a new client's evaluation keys go, for the server")
    encrypt.add_argument("--model", default="mnist", help=f"{', '.join(shipped_names())} or a folder; for a new client")
    encrypt.add_argument("--output", type=Path, required=True, help="the query, for the server")
    encrypt.set_defaults(run=_encrypt)

    decrypt = commands.add_parser("decrypt", help="print the label of each picture, one a line")
    decrypt.add_argument("answer", type=Path)
    decrypt.add_argument("--secret", type=Path, required=True)
    decrypt.set_defaults(run=_decrypt)


def _server_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    classify = commands.add_parser("classify", help="classify a query; needs no secret key")
    classify.add_argument("query", type=Path)
    classify.add_argument("--keys", type=Path, required=True, help="the client's evaluation keys")
    classify.add_argument("--model", default="mnist", help=f"{', '.join(shipped_names())} or a folder")
    classify.add_argument("--output", type=Path, required=True, help="the answer, for the client")
    classify.set_defaults(run=_classify)


def _model_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    train = commands.add_parser("train", help="train a network on images in the clear")
    train.add_argument(
        "--data", default=DIGITS, help=f"'{DIGITS}', a folder of idx files, or one of a folder per class"
    )
    train.add_argument("--output", type=Path, required=True, help="the model's folder; its name is the model's")
    train.add_argument("--train-on", type=int, metavar="N", help="train on the first N, measure on the rest")
    train.add_argument("--side", type=int, default=28, help="pixels that pictures are scaled to (default: 28)")
    train.add_argument("--channels", type=int, help="kernels of the convolution, a power of two")
    train.add_argument("--hidden", type=int, help="outputs of the hidden layer, a power of two")
    train.add_argument("--epochs", type=int, default=120)
    train.add_argument("--seed", type=int, default=0)
    train.set_defaults(run=_train)

    evaluate = commands.add_parser("evaluate", help="accuracy, and how well encryption agrees with plaintext")
    evaluate.add_argument("--model", default=DIGITS)
    evaluate.add_argument("--data", default=DIGITS)
    evaluate.add_argument("--skip", type=int, default=0, metavar="N", help="leave out the first N images")
    evaluate.add_argument("--encrypted", type=int, default=500, metavar="N", help="images to encrypt (default: 500)")
    evaluate.add_argument("--layout", choices=("packed", "batched"), default="packed")
    evaluate.set_defaults(run=_evaluate)

    bench = commands.add_parser("bench", help="speed and sizes, against TenSEAL's tutorial network")
    bench.add_argument("--model", default="mnist")
    bench.add_argument("--runs", type=int, default=12)
    bench.add_argument("--batch", type=int, default=4096, help="images at once (default: 4096, the most)")
    bench.set_defaults(run=_bench)


def _encrypt(given: argparse.Namespace) -> None:
    from privacy.encrypted_inference.client import Client

    if given.secret.exists():
        client, keys = Client.load(given.secret), None
    else:
        if given.keys is None:
            raise DataError(f"{given.secret}: does not exist; give --keys as well to make a new client")
        folder = model_folder(given.model)
        client, keys = Client.generate(load_architecture(folder), folder.name)
    pixels = np.stack([load_picture(picture, client.architecture.side) for picture in given.pictures])
    query = client.encrypt(pixels)
    if keys is not None:
        _write(given.keys, keys)
        client.save(given.secret)
    _write(given.output, query)


def _classify(given: argparse.Namespace) -> None:
    from privacy.encrypted_inference.server import Server

    folder = model_folder(given.model)
    with Server({folder.name: folder}) as server:
        server.register(_read(given.keys))
        answer = server.classify(_read(given.query))
    _write(given.output, answer)


def _decrypt(given: argparse.Namespace) -> None:
    from privacy.encrypted_inference.client import Client

    for label in Client.load(given.secret).decrypt(_read(given.answer)).labels:
        print(label)


def _train(given: argparse.Namespace) -> None:
    from privacy.encrypted_inference.ranges import check_ranges
    from privacy.encrypted_inference.training import Recipe, accuracy, save_run, train

    data = load_images(given.data, given.side)
    count = given.train_on or round(0.8 * len(data))
    if not 0 < count < len(data):
        raise DataError(f"{given.data}: has {len(data)} images; --train-on has to leave some to measure on")
    # Folders of pictures come class by class, and so do some idx files: without a given border, mix them first.
    order = np.arange(len(data)) if given.train_on else np.random.default_rng(given.seed).permutation(len(data))
    seen, unseen = data.part(order[:count]), data.part(order[count:])
    recipe = Recipe(epochs=given.epochs, seed=given.seed)
    if not given.output.parent.is_dir():
        raise DataError(f"{given.output}: the folder {given.output.parent} does not exist")
    trained = train(_architecture(data, given.channels, given.hidden), seen, recipe)
    spare = check_ranges(trained.weights, seen.pixels)
    figures = {
        "trained_on": len(seen),
        "measured_on": len(unseen),
        "accuracy": accuracy(trained.weights, unseen),
        "spare_bits": round(spare, 2),
    }
    save_run(trained, given.output, figures, recipe)
    print(json.dumps(figures | {"validation_accuracy": trained.validation_accuracy}, indent=2))


def _evaluate(given: argparse.Namespace) -> None:
    from privacy.encrypted_inference.measuring import agreement, as_row

    folder = model_folder(given.model)
    data = load_images(given.data, load_architecture(folder).side)
    if not 0 <= given.skip < len(data) or given.encrypted < 1:
        raise DataError(f"{given.data}: has {len(data)} images; --skip and --encrypted leave none")
    measured = agreement(folder, folder.name, data.part(slice(given.skip, None)), given.encrypted, given.layout)
    print(json.dumps(as_row(measured), indent=2))


def _bench(given: argparse.Namespace) -> None:
    from privacy.encrypted_inference.measuring import bench

    folder = model_folder(given.model)
    if given.runs < 1 or not 1 <= given.batch <= 4096:
        raise DataError("bench: --runs has to be at least 1, and --batch 1 to 4096")
    for what, figure in bench(folder, folder.name, given.runs, given.batch):
        print(f"{what:<75} {figure}", flush=True)


def _architecture(data: LabelledImages, channels: int | None, hidden: int | None) -> Architecture:
    side = data.pixels.shape[1]
    small = side <= 12
    kernel, stride = (3, 1) if small else (7, max(1, round((side - 7) / 7)))
    return Architecture(side, min(kernel, side), stride, channels or 4, hidden or (32 if small else 64), data.labels)


def _read(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise read_error(path, error) from error
    if len(content) > _MOST_BYTES:
        raise DataError(f"{path}: is longer than {_MOST_BYTES:,} bytes")
    return content


def _write(path: Path, content: bytes) -> None:
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
