"""The commands of `passkey`; two of them, `finetune` and `attack`, are in files of their own."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from privacy.errors import DataError, PasskeyError
from privacy.passkey import attack_command, finetune_command

if TYPE_CHECKING:
    from privacy.passkey.client import PasskeyClient


def register(commands: argparse._SubParsersAction[Any]) -> None:
    """Adds `passkey` with its commands; each sets `run`, which takes the parsed arguments and raises PrivacyError."""
    parser = commands.add_parser("passkey", help="text models that read only encrypted text", allow_abbrev=False)
    inner = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_convert(inner.add_parser("convert", help="convert a model to a passkey", allow_abbrev=False))
    _add_lines(
        inner.add_parser("encrypt", help="encrypt texts for the server, one a line", allow_abbrev=False), _encrypt
    )
    _add_lines(inner.add_parser("decrypt", help="read what the server generated", allow_abbrev=False), _decrypt)
    _add_check(inner.add_parser("check", help="tell whether a converted model is whole", allow_abbrev=False))
    _add_adapt(
        inner.add_parser("adapt", help="bring a converted encoder's states back to the plain ones", allow_abbrev=False)
    )
    finetune_command.register(inner)
    attack_command.register(inner)


def _add_convert(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a Hugging Face folder or hub name, with safetensors")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="the server's new folder")
    parser.add_argument("--tokenizer", metavar="PLACE", help="its tokenizer's folder, if that is another one")
    parser.add_argument(
        "--transform", choices=("glide", "orthogonal", "none"), default="glide", help="of embeddings (default: glide)"
    )
    parser.add_argument("--factor", type=int, default=1, metavar="N", help="glide reflections (default: 1)")
    parser.add_argument("--noise", type=float, default=0.0, metavar="SHARE", help="on the embeddings (default: 0)")
    parser.add_argument(
        "--no-carry", action="store_true", help="map the embeddings alone, for a model that is trained anew anyway"
    )
    parser.add_argument(
        "--kdf", choices=("argon2id", "scrypt"), default="argon2id", help="stretches the passkey (default: argon2id)"
    )
    _add_passkey(parser)
    parser.set_defaults(run=_convert)


def _add_adapt(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="UTF-8, one text a line, of the kind it will read")
    parser.add_argument("--original", required=True, metavar="PLACE", help="the model that was converted")
    parser.add_argument("--converted", type=Path, required=True, metavar="FOLDER", help="what it was converted to")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="the server's new folder")
    parser.add_argument("--steps", type=int, default=500, metavar="N", help="of 32 texts each (default: 500)")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, ...")
    _add_passkey(parser)
    parser.set_defaults(run=_adapt)


def _add_lines(parser: argparse.ArgumentParser, run: Callable[[argparse.Namespace], None]) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="UTF-8, one text a line")
    parser.add_argument("--tokenizer", required=True, metavar="PLACE", help="the original model's folder or hub name")
    parser.add_argument(
        "--converted", type=Path, required=True, metavar="FOLDER", help="the converted model, or its passkey.json alone"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="(default: standard output)")
    _add_passkey(parser)
    parser.set_defaults(run=run)


def _add_check(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a converted model")
    parser.set_defaults(run=_check)


def _add_passkey(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--passkey-file",
        type=Path,
        metavar="FILE",
        help="where the passkey stands (default: the environment's PRIVACY_PASSKEY, or a prompt)",
    )


def _convert(arguments: argparse.Namespace) -> None:
    from privacy.passkey.convert import convert
    from privacy.passkey.keys import PassKey

    passkey = PassKey.obtain(arguments.passkey_file, new=True)
    _quiet_transformers()
    converted = convert(
        arguments.model,
        arguments.output,
        passkey,
        tokenizer=arguments.tokenizer,
        transform=arguments.transform,
        factor=arguments.factor,
        noise=arguments.noise,
        carry=not arguments.no_carry,
        kdf=arguments.kdf,
    )
    print(f"{converted.folder}: {converted.record.rows:,} tokens encrypted, transform {arguments.transform}")
    if converted.record.transform.changes_rows and not converted.record.transform.carried:
        print("the rest of the model doesn't follow its embeddings: train it anew (finetune), or adapt it")
    if converted.plain_rows:
        print(
            "warning: its output rows are the plain embeddings, in encrypted order: whoever has the original model can "
            "compare rows, and the transform hides nothing",
            file=sys.stderr,
        )


def _adapt(arguments: argparse.Namespace) -> None:
    from privacy.passkey.adapting import adapt
    from privacy.passkey.keys import PassKey

    passkey = PassKey.obtain(arguments.passkey_file)
    texts = [line for _, line in _lines(arguments.file) if line.strip()]
    _quiet_transformers()
    adapted = adapt(
        arguments.original,
        arguments.converted,
        arguments.output,
        passkey,
        texts,
        steps=arguments.steps,
        device=arguments.device,
    )
    print("variance of the plain states left unexplained, by layer:")
    for name, shares in (("before", adapted.before), ("after", adapted.after)):
        print(f"{name:>8}", *(f"{share:7.2%}" for share in shares))


def _encrypt(arguments: argparse.Namespace) -> None:
    client = _client(arguments)
    with _output(arguments) as output:
        for _, line in _lines(arguments.file):
            print(client.text_of(client.encrypt(line)), file=output)


def _decrypt(arguments: argparse.Namespace) -> None:
    client = _client(arguments)
    with _output(arguments) as output:
        for number, line in _lines(arguments.file):
            try:
                print(client.decrypt(line), file=output)
            except PasskeyError as error:
                raise type(error)(f"{arguments.file}: line {number}: {error}") from None


def _check(arguments: argparse.Namespace) -> None:
    from privacy.passkey.record import check_folder

    record = check_folder(arguments.folder)
    print(f"{arguments.folder}: whole: {record.rows:,} encrypted tokens, transform {record.transform.kind}")


def _client(arguments: argparse.Namespace) -> PasskeyClient:
    from privacy.passkey.client import PasskeyClient
    from privacy.passkey.keys import PassKey

    passkey = PassKey.obtain(arguments.passkey_file)
    _quiet_transformers()
    return PasskeyClient(arguments.tokenizer, passkey, arguments.converted)


def _quiet_transformers() -> None:
    """Leaves what can go wrong to exceptions, and shows progress at a terminal only."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    if not sys.stderr.isatty():
        logging.disable_progress_bar()


@contextmanager
def _output(arguments: argparse.Namespace) -> Iterator[TextIO]:
    from privacy.files import atomic_path

    if arguments.output is None:
        yield sys.stdout
        return
    with atomic_path(arguments.output) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as file:
        yield file


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    from privacy.files import read_error

    try:
        with open(path, encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                yield number, line.rstrip("\n")
    except UnicodeDecodeError:
        raise DataError(f"{path}: is not UTF-8") from None
    except OSError as error:
        raise read_error(path, error) from error
