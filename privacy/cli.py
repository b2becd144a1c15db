"""The command line of the privacy stage: every command, no logic.

No secret is ever an argument, where other users of the machine could read it: a passphrase comes from a file, from the
environment or from a prompt, a database's password from the environment.
"""

from __future__ import annotations

import argparse
import getpass
import importlib.util
import io
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from privacy.errors import CannotOpenError, DataError, KeyFileError, MissingDependencyError, PrivacyError, VaultError

if TYPE_CHECKING:
    from privacy.keys import PrivateKey, PublicKey, VerifyKey
    from privacy.master_keys import MasterKeys
    from privacy.vault import Vault

PASSPHRASE = "PRIVACY_PASSPHRASE"
VAULT_URL = "PRIVACY_VAULT_URL"
SUFFIX = ".sealed"

_K = TypeVar("_K")

_KINDS = ("x25519", "mlkem768-x25519", "ed25519")
_MAX_SECRET_BYTES = 64 * 1024
_MAX_TEXT_BYTES = 4 * 2**20


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (try --help)\n")


def main(argv: Sequence[str] | None = None, *, prog: str = "python -m privacy") -> int:
    """Run one command and return the exit status: 0, 2 after a mistake in the input, 130 after an interruption.

    A command that is a check may return another: 1 if what it checks isn't as it should be.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    arguments = _parser(prog).parse_args(argv)
    command: Callable[[argparse.Namespace], int | None] = arguments.run
    try:
        status = command(arguments)
        sys.stdout.flush()
    except PrivacyError as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        print(f'{prog}: needs {error.name}: pip install "latentguard[privacy]"', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{prog}: interrupted; nothing was left half-written", file=sys.stderr)
        return 130
    except BrokenPipeError:
        _drop_output()
        return 141
    except OSError as error:  # most likely standard output, on a full disk
        _drop_output()
        print(f"{prog}: {error.filename or 'standard output'}: {error.strerror or error}", file=sys.stderr)
        return 2
    return status or 0


def _drop_output() -> None:
    """Keeps the interpreter from trying once more, at its end, to write what can't be written."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _keygen(arguments: argparse.Namespace) -> None:
    from privacy.keys import ED25519, PrivateKey, SigningKey, save_key

    if arguments.output.exists():
        raise DataError(f"{arguments.output}: exists already; it is not overwritten")
    passphrase = None if arguments.no_passphrase else _passphrase(arguments, f"new passphrase for {arguments.output}")
    signs = arguments.kind == ED25519
    key = SigningKey.generate() if signs else PrivateKey.generate(arguments.kind)
    public_key = key.public_key()  # tells, before anything is written, whether keys of this kind are to be had
    save_key(key, arguments.output, passphrase=passphrase() if callable(passphrase) else passphrase)
    print(public_key)


def _public(arguments: argparse.Namespace) -> None:
    from privacy.keys import load_key

    print(load_key(arguments.key, _passphrase(arguments, f"passphrase of {arguments.key}")).public_key())


def _seal(arguments: argparse.Namespace) -> None:
    from privacy.keys import load_signing_key
    from privacy.sealing import Metadata, seal_file

    recipients = _recipients(arguments.to)
    signing_key = None
    if arguments.sign is not None:
        signing_key = load_signing_key(arguments.sign, _passphrase(arguments, f"passphrase of {arguments.sign}"))
    prompt = None if arguments.prompt_file is None else _read_text(arguments.prompt_file).rstrip("\r\n")
    metadata = Metadata(model=arguments.model, prompt=prompt)
    for path, target in _targets(arguments, lambda path: path.with_name(path.name + SUFFIX)):
        seal_file(path, target, recipients, metadata, signing_key=signing_key, replace=_chosen(arguments))
        print(target)


def _open(arguments: argparse.Namespace) -> None:
    from privacy.sealing import open_file

    keys = _private_keys(arguments)
    signer = None if arguments.signer is None else _verify_key(arguments.signer)
    for path, target in _targets(arguments, _unsealed_name):
        try:
            info = open_file(path, target, keys, signer=signer, replace=_chosen(arguments))
        except CannotOpenError as error:
            raise DataError(f"{path}: {error}") from None
        made = f"signed by {info.signer}" if info.signer else "not signed"
        model = f", model {info.model!a}" if info.model else ""
        print(f"{target}: sealed {info.time:%Y-%m-%d %H:%M:%S} UTC{model}, {made}")


def _rotate(arguments: argparse.Namespace) -> None:
    from privacy.sealing import rewrap_file

    keys, recipients = _private_keys(arguments), _recipients(arguments.to)
    for path in arguments.files:
        try:
            rewrap_file(path, path, keys, recipients)
        except CannotOpenError as error:
            raise DataError(f"{path}: {error}") from None
        print(path)


def _open_published(arguments: argparse.Namespace) -> None:
    from privacy.files import write_secret
    from privacy.legacy import open_published

    token = _read(arguments.file, 2**30)
    secret = _read_text(arguments.secret_file)
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            content = open_published(token, secret)
    except CannotOpenError as error:
        raise DataError(f"{arguments.file}: {error}") from None
    except KeyFileError as error:
        raise KeyFileError(f"{arguments.secret_file}: {error}") from None
    for warning in warned:
        print(f"warning: {arguments.file}: {warning.message}", file=sys.stderr)
    write_secret(arguments.output, content, replace=True)
    print(arguments.output)


def _vault_init(arguments: argparse.Namespace) -> None:
    from privacy.master_keys import FileMasterKeys

    print(FileMasterKeys.create(arguments.keys).current_id)


def _vault_rotate(arguments: argparse.Namespace) -> None:
    from privacy.master_keys import FileMasterKeys

    if arguments.new_key:
        if arguments.keys is None:
            raise KeyFileError("--new-key needs the key file to add the key to: --keys FILE")
        FileMasterKeys(arguments.keys).add()
    rotated = _vault(arguments).rotate()
    print(f"{rotated} data keys wrapped anew")


def _vault_retire(arguments: argparse.Namespace) -> None:
    from privacy.master_keys import FileMasterKeys

    keys = FileMasterKeys(arguments.keys)
    if outdated := _vault(arguments).outdated():
        raise VaultError(f"{outdated} records are still under older master keys: run vault rotate first")
    print(f"{keys.keep_only_current()} older master keys removed")


def _vault_purge(arguments: argparse.Namespace) -> None:
    print(f"{_vault(arguments).purge()} expired records deleted")


def _vault(arguments: argparse.Namespace) -> Vault:
    from privacy.master_keys import FileMasterKeys, LocalMasterKeys
    from privacy.vault import Vault

    url = arguments.url or os.environ.get(VAULT_URL)
    if not url:
        raise VaultError(f"which vault? Give --url, or set {VAULT_URL}")
    if arguments.url and ":" in arguments.url.partition("://")[2].rpartition("@")[0]:
        raise VaultError(f"a password in an argument can be read by other users: set {VAULT_URL} instead")
    keys: MasterKeys = FileMasterKeys(arguments.keys) if arguments.keys else LocalMasterKeys.from_environment()
    return Vault(url, keys)


def _passphrase(arguments: argparse.Namespace, what: str) -> bytes | Callable[[], bytes]:
    """The passphrase of --passphrase-file or the environment; otherwise how to ask for it, if it is needed at all."""
    from privacy.files import read_secret
    from privacy.keys import passphrase_bytes

    if arguments.passphrase_file is not None:
        try:
            text = read_secret(arguments.passphrase_file, _MAX_SECRET_BYTES).decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError:
            raise KeyFileError(f"{arguments.passphrase_file}: is not UTF-8") from None
        return passphrase_bytes(text)
    if (from_environment := os.environ.get(PASSPHRASE)) is not None:
        return passphrase_bytes(from_environment)
    return lambda: _ask(what, twice=what.startswith("new"))


def _ask(what: str, *, twice: bool) -> bytes:
    from privacy.keys import passphrase_bytes

    if not sys.stdin.isatty():
        raise KeyFileError(f"{what}: nobody to ask for it; give --passphrase-file or set {PASSPHRASE}")
    text = getpass.getpass(f"{what}: ")
    if twice and getpass.getpass("once more: ") != text:
        raise KeyFileError("the two passphrases differ")
    return passphrase_bytes(text)


def _private_keys(arguments: argparse.Namespace) -> list[PrivateKey]:
    from privacy.keys import load_private_key

    return [load_private_key(path, _passphrase(arguments, f"passphrase of {path}")) for path in arguments.key]


def _recipients(texts: Sequence[str]) -> list[PublicKey]:
    """Public keys from lines, or from files that hold one a line; lines that start with # are comments."""
    from privacy.keys import PublicKey

    recipients: list[PublicKey] = []
    for text in texts:
        recipients += [_named(where, PublicKey.from_line, line) for where, line in _key_lines(text)]
    return recipients


def _verify_key(text: str) -> VerifyKey:
    from privacy.keys import VerifyKey

    lines = _key_lines(text)
    if len(lines) != 1:
        raise KeyFileError(f"{text}: holds {len(lines)} keys; a file has one signer")
    where, line = lines[0]
    return _named(where, VerifyKey.from_line, line)


def _named(where: str, read: Callable[[str], _K], line: str) -> _K:
    try:
        return read(line)
    except KeyFileError as error:
        raise KeyFileError(f"{where}: {error}") from None


def _key_lines(text: str) -> list[tuple[str, str]]:
    if text.startswith(tuple(f"{kind}:" for kind in _KINDS)):
        return [(f"{text[:24]}…", text)]
    lines = enumerate(_read_text(Path(text)).splitlines(), start=1)
    found = [(f"{text}: line {number}", line) for number, line in lines if line.strip() and not line.startswith("#")]
    if not found:
        raise KeyFileError(f"{text}: holds no public key")
    return found


def _targets(arguments: argparse.Namespace, name: Callable[[Path], Path]) -> list[tuple[Path, Path]]:
    """Each input with its output: the one of --output, or one named after the input, which never replaces a file."""
    if arguments.output is None:
        return [(path, name(path)) for path in arguments.files]
    if len(arguments.files) > 1:
        raise DataError("--output is one file, and there are several inputs")
    return [(arguments.files[0], arguments.output)]


def _chosen(arguments: argparse.Namespace) -> bool:
    return arguments.output is not None


def _unsealed_name(path: Path) -> Path:
    if path.suffix != SUFFIX:
        raise DataError(f"{path}: its name doesn't end in {SUFFIX}, so give --output")
    return path.with_suffix("")


def _read(path: Path, limit: int) -> bytes:
    from privacy.files import read_error

    try:
        with open(path, "rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise read_error(path, error) from error
    if len(content) > limit:
        raise DataError(f"{path}: is longer than {limit:,} bytes")
    return content


def _read_text(path: Path) -> str:
    try:
        return _read(path, _MAX_TEXT_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 at byte {error.start + 1}") from None


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = _Parser(prog=prog, description="Keys, sealed files, the vault, closeness and personal data.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_keygen(commands.add_parser("keygen", help="make a key", allow_abbrev=False))
    _add_public(commands.add_parser("public", help="print the public half of a key", allow_abbrev=False))
    _add_seal(commands.add_parser("seal", help="seal files to their recipients", allow_abbrev=False))
    _add_open(commands.add_parser("open", help="open sealed files", allow_abbrev=False))
    _add_rotate(commands.add_parser("rotate", help="give sealed files other recipients", allow_abbrev=False))
    _add_open_published(
        commands.add_parser(
            "open-published", help="read an image of the published PrivacyAsst flow", allow_abbrev=False
        )
    )
    _add_vault(commands.add_parser("vault", help="look after a vault", allow_abbrev=False))
    _add_data_commands(commands)
    _add_passkey(commands)
    _add_memorization(commands)
    return parser


def _add_passkey(commands: argparse._SubParsersAction[Any]) -> None:
    from privacy.passkey.commands import register

    register(commands)


def _add_memorization(commands: argparse._SubParsersAction[Any]) -> None:
    from privacy.memorization.commands import register

    register(commands)


def _add_data_commands(commands: argparse._SubParsersAction[Any]) -> None:
    if importlib.util.find_spec("privacy.data_commands") is None:
        for name in ("closeness", "scrub"):
            commands.add_parser(name, help="not in this installation").set_defaults(run=_not_installed)
        return
    from privacy.data_commands import register

    register(commands)


def _not_installed(arguments: argparse.Namespace) -> NoReturn:
    raise MissingDependencyError("this installation has no privacy.data_commands")


def _add_keygen(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, required=True, metavar="KEY", help="the new key file")
    parser.add_argument(
        "--kind",
        choices=_KINDS,
        default="x25519",
        help="x25519: a short public line (default); mlkem768-x25519: recommended for what has to stay secret for "
        "years, stands against quantum computers too; ed25519: signs what a server seals",
    )
    parser.add_argument("--no-passphrase", action="store_true", help="store the key in the clear")
    _add_passphrase(parser)
    parser.set_defaults(run=_keygen)


def _add_public(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("key", type=Path, metavar="KEY")
    _add_passphrase(parser)
    parser.set_defaults(run=_public)


def _add_seal(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE")
    _add_to(parser)
    parser.add_argument("--output", type=Path, metavar="OUT", help=f"the sealed file (default: FILE{SUFFIX})")
    parser.add_argument("--sign", type=Path, metavar="KEY", help="an ed25519 key: tells the owner who made it")
    parser.add_argument("--model", default="", metavar="ID", help="the model that made it, for everybody to read")
    parser.add_argument("--prompt-file", type=Path, metavar="FILE", help="its prompt, of which a keyed hash is kept")
    _add_passphrase(parser)
    parser.set_defaults(run=_seal)


def _add_open(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE")
    _add_key(parser)
    parser.add_argument("--output", type=Path, metavar="OUT", help=f"(default: FILE without {SUFFIX})")
    parser.add_argument("--signer", metavar="PUBLIC", help="refuse what this public key, or file with one, didn't sign")
    _add_passphrase(parser)
    parser.set_defaults(run=_open)


def _add_rotate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE")
    _add_key(parser)
    _add_to(parser)
    _add_passphrase(parser)
    parser.set_defaults(run=_rotate)


def _add_open_published(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="a Fernet token")
    parser.add_argument(
        "--secret-file", type=Path, required=True, metavar="FILE", help="its key, or the number both sides agreed on"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="OUT")
    parser.set_defaults(run=_open_published)


def _add_vault(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    init = commands.add_parser("init", help="make a file with a master key", allow_abbrev=False)
    init.add_argument("--keys", type=Path, required=True, metavar="FILE")
    init.set_defaults(run=_vault_init)
    rotate = commands.add_parser("rotate", help="bring all records under the current master key", allow_abbrev=False)
    rotate.add_argument("--new-key", action="store_true", help="add a new master key to the file first")
    rotate.set_defaults(run=_vault_rotate)
    retire = commands.add_parser("retire", help="remove master keys that no record needs", allow_abbrev=False)
    retire.set_defaults(run=_vault_retire)
    purge = commands.add_parser("purge", help="delete the records that expired", allow_abbrev=False)
    purge.set_defaults(run=_vault_purge)
    for command in (rotate, retire, purge):
        command.add_argument(
            "--keys",
            type=Path,
            required=command is retire,
            metavar="FILE",
            help="master keys (default: the environment's PRIVACY_VAULT_KEYS)",
        )
        command.add_argument("--url", metavar="URL", help=f"sqlite:///FILE or postgresql://… (default: ${VAULT_URL})")


def _add_to(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--to", nargs="+", required=True, metavar="PUBLIC", help="public keys, or files that hold them, one a line"
    )


def _add_key(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--key", type=Path, nargs="+", required=True, metavar="KEY", help="your key, and older ones if there are"
    )


def _add_passphrase(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--passphrase-file",
        type=Path,
        metavar="FILE",
        help=f"where the passphrase stands (default: the environment's {PASSPHRASE}, or a prompt)",
    )
