"""The commands `keys` and `audit`."""

from __future__ import annotations

import argparse
import getpass
import json
import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentguard.errors import DataError, MissingDependencyError

if TYPE_CHECKING:
    from latentguard.service.access import ApiKey, KeyStore
    from latentguard.service.audit import AuditLog
    from latentguard.service.key_admin import KeyAdmin
    from latentguard.service.settings import Settings

_DURATION = re.compile(r"(\d{1,6})([smhdw])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_LONGEST = timedelta(days=36_500)
_SCOPES = ("screen", "generate", "admin")


def register(commands: argparse._SubParsersAction[Any]) -> None:
    """Adds the commands; each sets `run`, which takes the parsed arguments."""
    keys = commands.add_parser("keys", help="make, list, revoke and rotate the service's API keys")
    _add_keys(keys.add_subparsers(required=True, metavar="COMMAND"))
    audit = commands.add_parser("audit", help="verify and export the service's audit log")
    _add_audit(audit.add_subparsers(required=True, metavar="COMMAND"))


def add_settings_options(parser: argparse.ArgumentParser) -> None:
    """The options that tell where a service's settings and data are."""
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings in TOML")
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="the service's data folder")


def settings_of(arguments: argparse.Namespace, **more: Any) -> Settings:
    """The settings that the options of `add_settings_options` choose, with the environment's.

    Raises:
        MissingDependencyError: the service's packages aren't installed.
        SettingsError: a setting can't be used.
    """
    with service_packages():
        from latentguard.service.settings import load_settings
    return load_settings(arguments.config, data_dir=arguments.data_dir, **more)


@contextmanager
def service_packages() -> Iterator[None]:
    """Tells how to install what an import in the block lacks."""
    try:
        yield
    except ModuleNotFoundError as error:
        message = f'the service needs {error.name}: pip install "latentguard[service]"'
        raise MissingDependencyError(message) from None


def _add_keys(commands: argparse._SubParsersAction[Any]) -> None:
    create = commands.add_parser("create", help="make a key; its token is printed once and can't be had again")
    create.add_argument("--name", required=True, help="whose it is, up to 64 characters")
    create.add_argument(
        "--scopes", type=_scopes, required=True, metavar="SCOPE[,SCOPE]", help="of " + ", ".join(_SCOPES)
    )
    create.add_argument("--expires", type=_duration, metavar="90d", help="when it ends, from now (s, m, h, d or w)")
    create.set_defaults(run=_create)
    listing = commands.add_parser("list", help="all keys, without their secrets")
    listing.set_defaults(run=_list)
    revoke = commands.add_parser("revoke", help="end a key for good")
    revoke.set_defaults(run=_revoke)
    rotate = commands.add_parser("rotate", help="give a key a new secret, which is printed once")
    rotate.add_argument(
        "--overlap", type=_duration, default=timedelta(0), metavar="10m", help="how long the old one is good still"
    )
    rotate.set_defaults(run=_rotate)
    for parser in (revoke, rotate):
        parser.add_argument("id", help="the key's id, as `keys list` shows it")
    for parser in (create, listing, revoke, rotate):
        add_settings_options(parser)


def _add_audit(commands: argparse._SubParsersAction[Any]) -> None:
    verify = commands.add_parser("verify", help="find any change or gap; the exit status is 1 if there is one")
    verify.set_defaults(run=_verify)
    export = commands.add_parser("export", help="write all entries as JSON Lines")
    export.add_argument("--output", type=Path, metavar="FILE", help="a new .jsonl; printed if left out")
    export.set_defaults(run=_export)
    for parser in (verify, export):
        add_settings_options(parser)


def _create(arguments: argparse.Namespace) -> None:
    with _opened(arguments, anew=True) as (_, _, admin):
        from latentguard.service.access import Scope

        expires = None if arguments.expires is None else datetime.now(timezone.utc) + arguments.expires
        key, token = admin.create(arguments.name, [Scope(scope) for scope in arguments.scopes], expires)
    _hand_over(key, token)


def _list(arguments: argparse.Namespace) -> None:
    with _opened(arguments) as (keys, _, _):
        rows: list[tuple[str, ...]] = [("id", "name", "scopes", "created", "expires", "last used", "state")]
        rows += [_row(key) for key in keys.list()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _revoke(arguments: argparse.Namespace) -> None:
    with _opened(arguments) as (_, _, admin):
        key = admin.revoke(arguments.id)
    print(f"revoked {key.id} ({key.name})")


def _rotate(arguments: argparse.Namespace) -> None:
    with _opened(arguments) as (_, _, admin):
        key, token = admin.rotate(arguments.id, overlap=arguments.overlap)
    _hand_over(key, token)


def _verify(arguments: argparse.Namespace) -> None:
    with _opened(arguments) as (_, audit, _):
        report = audit.verify()
    if not report.intact:
        print(f"damaged: {report.message}; intact before it: {report.entries:,}")
        raise SystemExit(1)
    numbers = "" if report.first is None else f", {report.first:,} to {report.last:,}"
    print(f"intact: {report.entries:,} entries{numbers}: {report.message}")


def _export(arguments: argparse.Namespace) -> None:
    from privacy.files import atomic_path

    with _opened(arguments) as (_, audit, _):
        lines = (json.dumps(entry.as_dict()) for entry in audit.stream())
        if arguments.output is None:
            for line in lines:
                print(line)
            return
        with (
            atomic_path(arguments.output, replace=False) as temporary,
            temporary.open("w", encoding="ascii") as file,
        ):
            count = sum(1 for line in lines if file.write(line + "\n"))
    print(f"wrote {count:,} entries to {arguments.output}")


@contextmanager
def _opened(arguments: argparse.Namespace, *, anew: bool = False) -> Iterator[tuple[KeyStore, AuditLog, KeyAdmin]]:
    """The service's keys and audit log; only with `anew` are they made where there are none."""
    settings = settings_of(arguments)
    if not anew and not settings.master_keys_file.exists():
        raise DataError(f"{settings.master_keys_file}: no such file: no service has its data here")
    with service_packages():
        from latentguard.service.access import KeyStore
        from latentguard.service.audit import open_audit
        from latentguard.service.database import Database
        from latentguard.service.key_admin import KeyAdmin
    settings.make_data_dir()
    with ExitStack() as stack:
        database = Database(settings.database_location())
        stack.callback(database.close)
        audit = open_audit(settings, database)
        stack.callback(audit.close)
        keys = KeyStore(database)
        yield keys, audit, KeyAdmin(keys, audit, f"command line ({_user()})")


def _hand_over(key: ApiKey, token: str) -> None:
    print(f"key {key.id} ({key.name}); its token, which is not shown again:", file=sys.stderr)
    print(token)


def _row(key: ApiKey) -> tuple[str, ...]:
    def shown(time: datetime | None) -> str:
        return "-" if time is None else time.strftime("%Y-%m-%d %H:%M")

    now = datetime.now(timezone.utc)
    state = "usable" if key.usable(now) else "expired" if key.revoked is None else "revoked"
    scopes = ",".join(scope for scope in _SCOPES if scope in {each.value for each in key.scopes})
    return key.id, key.name, scopes, shown(key.created), shown(key.expires), shown(key.last_used), state


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as in containers
        return "unknown user"


def _duration(text: str) -> timedelta:
    found = _DURATION.fullmatch(text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no duration such as 90d or 10m")
    duration = timedelta(**{_UNITS[found[2]]: int(found[1])})
    if duration > _LONGEST:
        raise argparse.ArgumentTypeError(f"{text!r} is longer than a hundred years")
    return duration


def _scopes(text: str) -> list[str]:
    scopes = [scope.strip() for scope in text.split(",")]
    unknown = [scope for scope in scopes if scope not in _SCOPES]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(_SCOPES)}")
    return scopes
