"""The command `scrub`: files in, files of the same shape out, without personal data."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path

import pytest

pytest.importorskip("presidio_analyzer", reason="personal data is found by Presidio, of the extra privacy")

import pyarrow as pa
import pyarrow.parquet as pq

from privacy.cli import main
from privacy.errors import DataError
from privacy.pii import restore
from privacy.tables import rewrite

MAIL = "root@printer.local"


def _scrub(source: Path, target: Path, *more: str) -> int:
    return main(["scrub", str(source), "--output", str(target), "--no-names", *more])


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_lines_keep_their_ends(tmp_path: Path, ends: str) -> None:
    source, target = tmp_path / "in.txt", tmp_path / "out.txt"
    source.write_bytes(f"a lake{ends}{ends}mail {MAIL}".encode())
    assert _scrub(source, target) == 0
    assert target.read_bytes() == f"a lake{ends}{ends}mail <EMAIL_ADDRESS>".encode()


def test_other_columns_of_a_csv_stay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = tmp_path / "in.csv", tmp_path / "out.csv"
    rows = [["id", "prompt", "note"], ["1", f'"{MAIL}", she said\nloudly', MAIL], ["2", "", "a\rb"]]
    with source.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    assert _scrub(source, target) == 0
    rows[1][1] = '"<EMAIL_ADDRESS>", she said\nloudly'
    with io.StringIO(target.read_bytes().decode(), newline="") as file:
        assert list(csv.reader(file)) == rows
    assert capsys.readouterr().out == "2 rows, replaced: EMAIL_ADDRESS 1\n"


def test_several_columns_of_a_jsonl_are_scrubbed(tmp_path: Path) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(json.dumps({"a": MAIL, "b": None, "n": [1, 2.5, "é", MAIL]}) + "\n", encoding="utf-8")
    assert _scrub(source, target, "--column", "a", "--column", "b") == 0
    assert json.loads(target.read_text(encoding="utf-8")) == {
        "a": "<EMAIL_ADDRESS>",
        "b": None,
        "n": [1, 2.5, "é", MAIL],
    }


def test_a_parquet_keeps_its_types_and_metadata(tmp_path: Path) -> None:
    source, target = tmp_path / "in.parquet", tmp_path / "out.parquet"
    schema = pa.schema([("n", pa.int8()), ("prompt", pa.large_string())], metadata={"k": "v"})
    pq.write_table(pa.table({"n": list(range(100)), "prompt": [MAIL, None] * 50}, schema=schema), source)
    assert _scrub(source, target) == 0
    table = pq.read_table(target)
    assert table.schema.equals(schema, check_metadata=True)
    assert table["prompt"].to_pylist() == ["<EMAIL_ADDRESS>", None] * 50


def test_a_file_may_be_scrubbed_in_place(tmp_path: Path) -> None:
    path = tmp_path / "in.log"
    path.write_text(f"user {MAIL}\n")
    assert _scrub(path, path, "--action", "mask") == 0
    assert path.read_text() == "user ********\n"
    assert [each.name for each in tmp_path.iterdir()] == ["in.log"]


def test_a_key_from_a_file_hashes(tmp_path: Path) -> None:
    source, target, key = tmp_path / "in.txt", tmp_path / "out.txt", tmp_path / "key"
    source.write_text(f"{MAIL} {MAIL}\n")
    key.write_bytes(b"k" * 32)
    key.chmod(0o644)
    assert _scrub(source, target, "--action", "hash", "--key-file", str(key)) == 2
    key.chmod(0o600)
    assert _scrub(source, target, "--action", "hash", "--key-file", str(key)) == 0
    first, second = target.read_text().split()
    assert first == second
    assert MAIL not in first


def test_tokens_go_to_the_vault(tmp_path: Path) -> None:
    from privacy.master_keys import FileMasterKeys
    from privacy.vault import Vault

    source, target, keys = tmp_path / "in.txt", tmp_path / "out.txt", tmp_path / "keys"
    source.write_text(f"mail {MAIL}\n")
    url = f"sqlite:///{tmp_path / 'vault.db'}"
    vault = Vault(url, FileMasterKeys.create(keys))
    more = ["--action", "tokens", "--keys", str(keys), "--expire-days", "30"]
    assert _scrub(source, target, *more, "--url", url) == 0
    assert MAIL not in target.read_text()
    assert restore(target.read_text(), vault) == f"mail {MAIL}\n"


@pytest.mark.parametrize(
    ("name", "content", "more", "message"),
    [
        ("in.csv", "a,b\n1,2\n", [], "has no column 'prompt'; its columns are: 'a', 'b'"),
        ("in.csv", "prompt,b\n1\n", [], "row 1 (line 2): has 1 fields where the header has 2"),
        ("in.csv", "", [], "has no header"),
        ("in.jsonl", '{"prompt": 1}\n', [], "line 1: field 'prompt': is not text"),
        ("in.jsonl", "{\n", [], "line 1: is not valid JSON"),
        ("in.jsonl", "[]\n", [], "line 1: is not an object"),
        ("in.parquet", "no", [], "is damaged or not a Parquet file"),
        ("in.txt", "\udcff\n", [], "line 1: is not UTF-8"),
        ("in.doc", "x", [], "its suffix is none of"),
        ("in.txt", "x\n", ["--action", "hash"], "--action hash and --key-file go together"),
        ("in.txt", "x\n", ["--action", "tokens"], "which vault"),
        ("in.txt", "x\n", ["--url", "sqlite://"], "belong to --action tokens"),
        ("in.txt", "x\n", ["--keep", "none.txt"], "none.txt: can't be read"),
    ],
)
def test_a_mistake_gets_one_line_and_leaves_the_output_alone(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    content: str,
    more: list[str],
    message: str,
) -> None:
    monkeypatch.delenv("PRIVACY_VAULT_URL", raising=False)
    source = tmp_path / name
    source.write_bytes(content.encode("utf-8", "surrogateescape"))
    target = tmp_path / f"out{source.suffix}"
    target.write_text("as it was")
    assert _scrub(source, target, *more) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert target.read_text() == "as it was"


def test_files_of_different_kinds_are_refused(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("x")
    with pytest.raises(DataError, match=r"its suffix is not \.txt"):
        rewrite(tmp_path / "in.txt", tmp_path / "out.csv", [], str)
    with pytest.raises(DataError, match="does not exist"):
        rewrite(tmp_path / "none.txt", tmp_path / "out.txt", [], str)


def test_a_value_that_is_no_secret_is_kept(tmp_path: Path) -> None:
    source, keep = tmp_path / "in.txt", tmp_path / "keep.txt"
    source.write_text(f"{MAIL} 203.0.113.7\n")
    keep.write_text(f"{MAIL.upper()}\n")
    assert _scrub(source, source, "--keep", str(keep)) == 0
    assert source.read_text() == f"{MAIL} <IP_ADDRESS>\n"


def test_text_in_an_image_is_covered(tmp_path: Path) -> None:
    if shutil.which("tesseract") is None:
        pytest.skip("tesseract is not installed (Debian: tesseract-ocr)")
    images = pytest.importorskip("PIL.Image")
    from PIL import ImageDraw, ImageFont

    source, target = tmp_path / "in.png", tmp_path / "out.png"
    image = images.new("RGB", (640, 120), "white")
    ImageDraw.Draw(image).text((20, 30), "Mail anna.schmidt@example.org today", "black", ImageFont.load_default(28))
    image.save(source, exif=b"Exif\x00\x00secret")
    assert _scrub(source, target) == 0
    covered = images.open(target)
    assert covered.size == image.size
    assert covered.getpixel((300, 45)) == (0, 0, 0)
    assert covered.crop((0, 0, 75, 120)).tobytes() == image.crop((0, 0, 75, 120)).tobytes()
    assert b"secret" not in target.read_bytes()


def test_without_tesseract_an_image_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    images = pytest.importorskip("PIL.Image")
    images.new("RGB", (8, 8)).save(tmp_path / "in.png")
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert _scrub(tmp_path / "in.png", tmp_path / "out.png") == 2
    assert "tesseract-ocr" in capsys.readouterr().err
    assert not (tmp_path / "out.png").exists()
    (tmp_path / "bad.png").write_text("no image")
    assert _scrub(tmp_path / "bad.png", tmp_path / "out.png") == 2
