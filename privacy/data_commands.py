"""The commands that work on data: `closeness` measures a table, `scrub` takes personal data out of files."""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from privacy.errors import DataError, PiiError

if TYPE_CHECKING:
    from privacy.pii import PiiFinder
    from privacy.pii.actions import Action, Tokens

_VAULT_URL = "PRIVACY_VAULT_URL"
_MAX_KEY_BYTES = 4096
_IMAGES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}


def register(commands: argparse._SubParsersAction[Any]) -> None:
    """Adds both commands; each sets `run`, which takes the parsed arguments and raises PrivacyError."""
    _add_closeness(commands.add_parser("closeness", help="k-anonymity, l-diversity and t-closeness of a table"))
    _add_scrub(commands.add_parser("scrub", help="replace personal data in a file"))


def _add_closeness(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="a .csv with a header, or a .parquet")
    parser.add_argument(
        "--quasi-identifiers", "--qi", nargs="+", required=True, metavar="COLUMN", help="columns that others may know"
    )
    parser.add_argument(
        "--sensitive", "--sa", nargs="+", required=True, metavar="COLUMN", help="columns that nobody should learn"
    )
    parser.add_argument(
        "--ordered",
        action="append",
        default=[],
        metavar="COLUMN[=FIRST,NEXT,...]",
        help="a sensitive column whose values have an order: the one given, or that of numbers (repeat for more)",
    )
    parser.add_argument("--rows", type=int, metavar="N", help="only the first N rows")
    parser.add_argument("--chart", type=Path, metavar="FILE", help="draw each group's distance to a .png, .svg or .pdf")
    parser.set_defaults(run=_closeness)


def _closeness(arguments: argparse.Namespace) -> None:
    from privacy.closeness import draw_chart, measure, read_table, report

    table = read_table(arguments.file, [*arguments.quasi_identifiers, *arguments.sensitive], arguments.rows)
    ordered = {}
    for each in arguments.ordered:
        column, _, values = each.partition("=")
        ordered[column] = values.split(",") if values else []
    closeness = measure(table, arguments.quasi_identifiers, arguments.sensitive, ordered)
    print(report(closeness))
    if arguments.chart:
        draw_chart(closeness, arguments.chart)


def _add_scrub(parser: argparse.ArgumentParser) -> None:
    from privacy.pii.finder import TYPES

    parser.add_argument(
        "file", type=Path, help="a .txt or .log (a text a line), .csv, .jsonl or .parquet; or a .png or .jpg"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="of the same suffix")
    parser.add_argument(
        "--column", action="append", metavar="NAME", help="a column of text (repeat for more; default: prompt)"
    )
    parser.add_argument(
        "--action",
        choices=("replace", "mask", "hash", "tokens"),
        default="replace",
        help="put <TYPE>, asterisks, a keyed hash or a token of the vault in its place (default: replace)",
    )
    parser.add_argument("--types", nargs="+", choices=TYPES, metavar="TYPE", help=f"only these of {', '.join(TYPES)}")
    names = parser.add_mutually_exclusive_group()
    names.add_argument("--names", action="store_true", default=None, help="fail where names can't be found")
    names.add_argument(
        "--no-names", action="store_false", dest="names", help="don't look for names of persons and places"
    )
    parser.add_argument("--keep", type=Path, metavar="FILE", help="values that are no secret, one a line")
    parser.add_argument("--key-file", type=Path, metavar="FILE", help="the key of --action hash: 16 bytes or more")
    parser.add_argument(
        "--url", metavar="URL", help=f"the vault of --action tokens, if not in the environment's {_VAULT_URL}"
    )
    parser.add_argument(
        "--keys", type=Path, metavar="FILE", help="its master keys, if not in the environment's PRIVACY_VAULT_KEYS"
    )
    parser.add_argument("--expire-days", type=float, metavar="N", help="after which the vault forgets the values")
    parser.set_defaults(run=_scrub)


def _scrub(arguments: argparse.Namespace) -> None:
    from privacy.pii import PiiFinder

    finder = PiiFinder(arguments.types, names=arguments.names, keep=_kept(arguments.keep))
    if finder.note:
        print(f"note: {finder.note}", file=sys.stderr)
    if arguments.file.suffix.lower() in _IMAGES:
        _scrub_image(arguments, finder)
    else:
        _scrub_texts(arguments, finder)


def _scrub_texts(arguments: argparse.Namespace, finder: PiiFinder) -> None:
    from privacy.pii import Scrubber
    from privacy.tables import rewrite

    scrubber = Scrubber(_action(arguments), finder)
    found: Counter[str] = Counter()

    def scrubbed(text: str) -> str:
        result = scrubber.scrub(text)
        found.update(each.type for each in result.findings)
        return result.text

    rows = rewrite(arguments.file, arguments.output, arguments.column or ["prompt"], scrubbed)
    print(_summary(f"{rows:,} rows", found, finder))


def _scrub_image(arguments: argparse.Namespace, finder: PiiFinder) -> None:
    from PIL import Image, UnidentifiedImageError

    from privacy.files import atomic_path
    from privacy.pii.images import cover

    if arguments.column or arguments.action != "replace":
        raise PiiError("in an image personal data is covered: --column and --action don't apply")
    suffix = arguments.output.suffix.lower()
    if suffix not in _IMAGES:
        raise DataError(f"{arguments.output}: its suffix is none of {', '.join(_IMAGES)}")
    try:
        with Image.open(arguments.file) as image:
            covered = cover(image, finder)
    except (UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise DataError(f"{arguments.file}: is no image that can be read") from error
    except OSError as error:
        raise DataError(f"{arguments.file}: can't be read: {error.strerror or 'it is damaged'}") from error
    with atomic_path(arguments.output) as temporary:
        covered.image.save(temporary, _IMAGES[suffix])
    print(_summary("1 image", Counter(covered.covered), finder))


def _summary(what: str, found: Counter[str], finder: PiiFinder) -> str:
    if not found:
        return f"{what}, nothing found of {', '.join(finder.types)}"
    return f"{what}, replaced: " + ", ".join(f"{kind} {number:,}" for kind, number in found.most_common())


def _kept(path: Path | None) -> list[str]:
    if path is None:
        return []
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "is not UTF-8"
        raise DataError(f"{path}: can't be read: {why}") from error


def _action(arguments: argparse.Namespace) -> Action:
    from privacy.pii.actions import KeyedHash, Mask, Replace

    if (arguments.key_file is not None) != (arguments.action == "hash"):
        raise PiiError("--action hash and --key-file go together")
    if arguments.action != "tokens" and (arguments.url or arguments.keys or arguments.expire_days is not None):
        raise PiiError("--url, --keys and --expire-days belong to --action tokens")
    if arguments.action == "replace":
        return Replace()
    if arguments.action == "mask":
        return Mask()
    if arguments.action == "hash":
        from privacy.files import read_secret

        return KeyedHash(read_secret(arguments.key_file, _MAX_KEY_BYTES))
    return _tokens(arguments)


def _tokens(arguments: argparse.Namespace) -> Tokens:
    from privacy.master_keys import FileMasterKeys, LocalMasterKeys
    from privacy.pii.actions import Tokens
    from privacy.vault import Vault

    url = arguments.url or os.environ.get(_VAULT_URL)
    if not url:
        raise PiiError(f"which vault are the tokens' values kept in? Give --url, or set {_VAULT_URL}")
    if arguments.url and ":" in arguments.url.partition("://")[2].rpartition("@")[0]:
        raise PiiError(f"a password in an argument can be read by other users: set {_VAULT_URL} instead")
    days = arguments.expire_days
    if days is not None and not 0 < days < 36_525:
        raise PiiError("--expire-days is not between 0 and 36,525")
    expires = None if days is None else datetime.now(timezone.utc) + timedelta(days=days)
    keys = FileMasterKeys(arguments.keys) if arguments.keys else LocalMasterKeys.from_environment()
    return Tokens(Vault(url, keys), expires)
