from __future__ import annotations

import csv
import datetime
import decimal
import gzip
import hashlib
import json
import signal
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from disk import files_limited_to
from hypothesis import given
from hypothesis import strategies as st

from latentguard.errors import DataError
from latentguard.records import (
    MAX_PROMPT_CHARS,
    ConceptEntry,
    PromptFile,
    PromptRow,
    check_output,
    check_prompts_file,
    open_writer,
    read_concepts,
    read_prompts,
)

FORMATS = [".txt", ".csv", ".jsonl", ".parquet"]
TABLES = [".csv", ".jsonl", ".parquet"]
SECRET = "a very private prompt"


@pytest.fixture
def file(tmp_path: Path) -> Callable[[str, str | bytes], Path]:
    def write(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


File = Callable[[str, "str | bytes"], Path]


def prompts_of(path: Path, column: str = "prompt") -> list[str]:
    return [row.prompt for row in read_prompts(path, column)]


def write_prompts(path: Path, prompts: Sequence[Any]) -> Path:
    """A file of these prompts, made without the code under test."""
    if path.suffix == ".txt":
        path.write_text("".join(f"{prompt}\n" for prompt in prompts), encoding="utf-8")
    elif path.suffix == ".csv":
        with open(path, "w", newline="", encoding="utf-8") as handle:
            csv.writer(handle).writerows([["id", "prompt"], *enumerate(prompts)])
    elif path.suffix == ".jsonl":
        lines = (json.dumps({"id": n, "prompt": prompt}) for n, prompt in enumerate(prompts))
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    else:
        pq.write_table(pa.table({"id": range(len(prompts)), "prompt": list(prompts)}), path)
    return path


def fault_of(path: Path, column: str = "prompt") -> str:
    """The message of the DataError that reading the file ends in, without the folder."""
    with pytest.raises(DataError) as raised:
        list(read_prompts(path, column))
    message = str(raised.value)
    assert "\n" not in message
    assert SECRET not in message
    return message.replace(f"{path.parent}/", "")


# --- reading prompts


@pytest.mark.parametrize("suffix", [*FORMATS, ".TXT", ".Csv"])
def test_prompts_come_in_the_order_of_the_file(tmp_path: Path, suffix: str) -> None:
    prompts = ["a cat", 'a "big", red dog', "  ein B\u00e4r \u718a"]
    path = write_prompts(tmp_path / f"prompts{suffix.lower()}", prompts)
    path = path.rename(path.with_suffix(suffix))
    assert [(row.number, row.prompt) for row in read_prompts(path)] == list(enumerate(prompts, 1))


def test_the_other_columns_of_a_csv_are_text(file: File) -> None:
    path = file("p.csv", "id,prompt,label\n7,a cat,1\n")
    assert list(read_prompts(path)) == [PromptRow(1, "a cat", {"id": "7", "label": "1"})]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_the_other_columns_keep_their_types(tmp_path: Path, suffix: str) -> None:
    path = write_prompts(tmp_path / f"p{suffix}", ["a cat"])
    assert list(read_prompts(path)) == [PromptRow(1, "a cat", {"id": 0})]


def test_the_column_can_be_named(file: File) -> None:
    assert prompts_of(file("p.csv", "prompt,caption\nno,yes\n"), "caption") == ["yes"]


@pytest.mark.parametrize("suffix", [".txt", ".csv", ".jsonl"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_byte_order_mark_and_either_line_end_are_tolerated(tmp_path: Path, suffix: str, end: str) -> None:
    path = write_prompts(tmp_path / f"p{suffix}", ["a cat", "a dog"])
    text = end.join(path.read_text().splitlines())
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert prompts_of(path) == ["a cat", "a dog"]


@pytest.mark.parametrize("suffix", [".txt", ".csv", ".jsonl"])
def test_blank_lines_at_the_end_are_tolerated(tmp_path: Path, suffix: str) -> None:
    path = write_prompts(tmp_path / f"p{suffix}", ["a cat"])
    path.write_text(path.read_text() + "\n\n")
    assert prompts_of(path) == ["a cat"]


def test_a_quoted_csv_field_may_hold_line_ends_and_quotes(file: File) -> None:
    assert prompts_of(file("p.csv", 'prompt\n"a\r\ncat, ""quoted"""\n"a dog"\n')) == ['a\r\ncat, "quoted"', "a dog"]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_any_text_type_of_parquet_is_read(tmp_path: Path, kind: pa.DataType) -> None:
    pq.write_table(pa.table({"prompt": pa.array(["a cat", "a cat"], kind)}), tmp_path / "p.parquet")
    assert prompts_of(tmp_path / "p.parquet") == ["a cat", "a cat"]


@pytest.mark.parametrize("suffix", FORMATS)
def test_the_longest_prompt_is_read(tmp_path: Path, suffix: str) -> None:
    longest = "\U0001f431" * MAX_PROMPT_CHARS
    assert prompts_of(write_prompts(tmp_path / f"p{suffix}", [longest])) == [longest]


@pytest.mark.parametrize("suffix", FORMATS)
def test_reading_is_streamed(tmp_path: Path, suffix: str) -> None:
    path = write_prompts(tmp_path / f"p{suffix}", [f"{n} {'cat ' * 100}" for n in range(8_000)])
    next(read_prompts(path))  # imports what it needs
    tracemalloc.start()
    try:
        for _ in read_prompts(path):
            pass
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2_000_000  # of 3.2 MB


# --- prompt files that can't be used


@pytest.mark.parametrize("check", [check_prompts_file, read_prompts])
def test_a_missing_file_is_reported_at_once(tmp_path: Path, check: Callable[[Path], object]) -> None:
    with pytest.raises(DataError, match=r"absent\.txt: does not exist$"):
        check(tmp_path / "absent.txt")


def test_a_prompt_given_for_a_file_name_is_a_missing_file() -> None:
    with pytest.raises(DataError, match="does not exist"):
        check_prompts_file("a cat " * 1000)


def test_a_folder_is_no_prompt_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is a folder, not a file"):
        check_prompts_file(tmp_path)


def test_an_unknown_suffix_is_reported_with_the_known_ones(file: File) -> None:
    with pytest.raises(DataError, match=r"p\.xlsx: its suffix is none of \.txt, \.csv, \.tsv, \.jsonl, \.parquet"):
        check_prompts_file(file("p.xlsx", "a cat"))


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_file_without_rows_is_refused(tmp_path: Path, suffix: str) -> None:
    assert fault_of(write_prompts(tmp_path / f"p{suffix}", [])) == f"p{suffix}: has no prompts"


@pytest.mark.parametrize("name", ["p.txt", "p.csv", "p.jsonl"])
def test_a_file_of_no_bytes_is_refused(file: File, name: str) -> None:
    assert fault_of(file(name, "")) == f"{name}: has no prompts"


@pytest.mark.parametrize(
    ("suffix", "where"),
    [
        (".csv", "row 2 (line 3): field 'prompt'"),
        (".jsonl", "line 2: field 'prompt'"),
        (".parquet", "row 2: field 'prompt'"),
    ],
)
@pytest.mark.parametrize("blank", ["", " \t "])
def test_an_empty_prompt_is_refused(tmp_path: Path, suffix: str, where: str, blank: str) -> None:
    path = write_prompts(tmp_path / f"p{suffix}", [SECRET, blank, SECRET])
    assert fault_of(path) == f"p{suffix}: {where} is empty"


@pytest.mark.parametrize(("suffix", "where"), [(".jsonl", "line 2"), (".parquet", "row 2")])
def test_a_null_prompt_is_refused(tmp_path: Path, suffix: str, where: str) -> None:
    path = write_prompts(tmp_path / f"p{suffix}", [SECRET, None])
    assert fault_of(path) == f"p{suffix}: {where}: field 'prompt' is null"


@pytest.mark.parametrize("missing", ["nan", "NaN", " NaN"])
def test_the_nan_that_pandas_writes_to_csv_is_refused(tmp_path: Path, missing: str) -> None:
    path = write_prompts(tmp_path / "p.csv", [SECRET, missing])
    assert fault_of(path) == "p.csv: row 2 (line 3): field 'prompt' is NaN"


def test_a_prompt_with_nan_in_it_is_a_prompt(tmp_path: Path) -> None:
    assert prompts_of(write_prompts(tmp_path / "p.csv", ["NaN bread", "NAN"])) == ["NaN bread", "NAN"]


@pytest.mark.parametrize(
    ("values", "fault"),
    [([1.5, float("nan")], "is a number, not text"), ([float("nan")], "is NaN"), ([["a"]], "is a list, not text")],
)
@pytest.mark.parametrize(("suffix", "where"), [(".jsonl", "line 1"), (".parquet", "row 1")])
def test_a_prompt_that_is_not_text_is_refused(
    tmp_path: Path, suffix: str, where: str, values: list[Any], fault: str
) -> None:
    path = write_prompts(tmp_path / f"p{suffix}", values)
    assert fault_of(path) == f"p{suffix}: {where}: field 'prompt' {fault}"


def test_bytes_in_parquet_are_not_text(tmp_path: Path) -> None:
    assert "is bytes, not text" in fault_of(write_prompts(tmp_path / "p.parquet", [SECRET.encode()]))


@pytest.mark.parametrize("suffix", TABLES)
def test_a_missing_column_is_refused_with_those_there_are(tmp_path: Path, suffix: str) -> None:
    path = write_prompts(tmp_path / f"p{suffix}", [SECRET])
    assert fault_of(path, "text").endswith("has no column 'text'; its columns are: 'id', 'prompt'")


def test_a_csv_without_a_header_does_not_show_its_first_prompt(file: File) -> None:
    assert fault_of(file("p.csv", f"{SECRET},x\n")).endswith("(a long text: is the header missing?), 'x'")


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_column_that_is_there_twice_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"p{suffix}"
    if suffix == ".csv":
        path.write_text("prompt,prompt\na,b\n")
    else:
        pq.write_table(pa.Table.from_arrays([pa.array(["a"])] * 2, names=["prompt"] * 2), path)
    assert fault_of(path).endswith("has two columns 'prompt'")


@pytest.mark.parametrize("name", ["p.txt", "p.jsonl"])
def test_a_blank_line_between_others_is_refused(tmp_path: Path, name: str) -> None:
    path = write_prompts(tmp_path / name, [SECRET, SECRET])
    path.write_text(path.read_text().replace("\n", "\n \n\n", 1))
    assert fault_of(path) == f"{name}: line 2: is blank"


def test_a_blank_line_between_rows_of_a_csv_is_refused(file: File) -> None:
    assert fault_of(file("p.csv", "prompt\na\n\nb\n")) == "p.csv: row 2 (line 3): is blank"


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ("1", "has 1 field where the header has 2"),
        (f"1,{SECRET},3", "has 3 fields where the header has 2"),
        (f'1,"{SECRET}', "is not valid CSV: unexpected end of data"),
        (f'1,"{SECRET}"x', "is not valid CSV: ',' expected after '\"'"),
        (f"1,a\r{SECRET}", "is not valid CSV: a carriage return outside quotes"),
    ],
)
def test_a_malformed_csv_row_is_refused(file: File, row: str, fault: str) -> None:
    assert fault_of(file("p.csv", f'id,prompt\n0,"a\ncat"\n{row}\n')) == f"p.csv: row 2 (line 4): {fault}"


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ('{"prompt": "a', "is not valid JSON (Unterminated string starting at; character 12)"),
        ('["a cat"]', "is a list, not an object"),
        ('{"text": "a cat"}', "has no column 'prompt'; its columns are: 'text'"),
        ('{"prompt": "\\ud83d"}', "field 'prompt' is not valid Unicode: it has half of a surrogate pair"),
        ('{"prompt": "a cat", "x": "\\ud83d"}', "field 'x' is not valid Unicode: it has half of a surrogate pair"),
        ('{"prompt": "a cat", "\\ud83d": 1}', "field '\\ud83d' is not valid Unicode: it has half of a surrogate pair"),
        ('{"prompt": "a cat", "prompt": "a dog"}', "has two fields 'prompt'"),
        ('{"prompt": "a cat", "x": [{"y": 1, "y": 2}]}', "has two fields 'y'"),
        ("[" * 100_000, "is not JSON that can be read: it is nested too deep or has too long a number"),
        ("9" * 10_000, "is not JSON that can be read: it is nested too deep or has too long a number"),
    ],
)
def test_a_malformed_json_line_is_refused(file: File, line: str, fault: str) -> None:
    path = file("p.jsonl", f'{{"prompt": "{SECRET}"}}\n{line}\n')
    assert fault_of(path) == f"p.jsonl: line 2: {fault}"


@pytest.mark.parametrize("suffix", [".txt", ".csv", ".jsonl"])
def test_another_encoding_is_refused_with_its_line(tmp_path: Path, suffix: str) -> None:
    path = write_prompts(tmp_path / f"p{suffix}", ["a cat", "XX"])
    path.write_bytes(path.read_bytes().replace(b"XX", "B\u00e4r".encode("latin-1")))
    assert f"line {len(path.read_bytes().splitlines())}: is not UTF-8 at byte " in fault_of(path)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le"])
def test_utf_16_is_refused(file: File, encoding: str) -> None:
    assert "p.txt: line 1: " in fault_of(file("p.txt", "a cat\na dog\n".encode(encoding)))


def test_a_carriage_return_inside_a_line_of_text_is_refused(file: File) -> None:
    assert "line 1: has a carriage return inside" in fault_of(file("p.txt", "a cat\ra dog\r"))


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_prompt_beyond_the_limit_is_refused(tmp_path: Path, suffix: str) -> None:
    path = write_prompts(tmp_path / f"p{suffix}", [SECRET, "a" * (MAX_PROMPT_CHARS + 1)])
    assert fault_of(path).endswith("is longer than 100,000 characters")


def test_a_field_that_nobody_asked_for_may_be_anything(file: File) -> None:
    path = file("p.jsonl", '{"prompt": "a cat", "x": "\\ud83d"}\n')
    assert [row.prompt for row in PromptFile(path, fields=())] == ["a cat"]


# --- rows that can't be used, where they don't end the reading


def faults_of(path: Path, **options: Any) -> list[str]:
    """What the rows of a file have: the prompt, or the fault."""
    rows = list(PromptFile(path, faulty=True, **options))
    assert [row.number for row in rows] == list(range(1, len(rows) + 1))
    assert all(row.prompt == "" for row in rows if row.fault is not None)
    return [row.fault or row.prompt for row in rows]


def test_lines_of_text_that_can_not_be_used_have_faults(file: File) -> None:
    content = (
        b"\xef\xbb\xbf\na cat\n\n \n\xffa\n" + b"x" * 1_000_000 + b"\na\rb\na\0b\n" + b"y" * 100_001 + b"\na dog\n\n\n"
    )
    assert faults_of(file("p.txt", content)) == [
        "line 1: is blank",
        "a cat",
        "line 3: is blank",
        "line 4: is blank",
        "line 5: is not UTF-8 at byte 1 of the line",
        "line 6: is longer than 100,000 characters",
        "line 7: has a carriage return inside: lines end with \\n or \\r\\n",
        "line 8: has a NUL character: is the file UTF-16, or not text?",
        "line 9: is longer than 100,000 characters",
        "a dog",
    ]


def test_rows_of_a_csv_that_can_not_be_used_have_faults(file: File) -> None:
    content = b'id,prompt\n1,\n2,a,b\n\n\n5\n6,NaN\n7,"a\n\xff"\n8,"a\0\nb"\n9,a cat\n\n\n'
    assert faults_of(path := file("p.csv", content)) == [
        "row 1 (line 2): field 'prompt' is empty",
        "row 2 (line 3): has 3 fields where the header has 2",
        "row 3 (line 4): is blank",
        "row 4 (line 5): is blank",
        "row 5 (line 6): has 1 field where the header has 2",
        "row 6 (line 7): field 'prompt' is NaN",
        "line 9: is not UTF-8 at byte 1 of the line",
        "line 10: has a NUL character: is the file UTF-16, or not text?",
        "a cat",
    ]
    assert [row.fields.get("id") for row in PromptFile(path, faulty=True)] == ["1", *[None] * 4, "6", None, None, "9"]


def test_lines_of_json_that_can_not_be_used_have_faults(file: File) -> None:
    content = b'oops\n[]\n{"x": 1}\n\n{"prompt": 5, "id": 7}\n{"prompt": "\xff"}\n{"prompt": "a cat"}\n'
    assert faults_of(path := file("p.jsonl", content)) == [
        "line 1: is not valid JSON (Expecting value; character 1)",
        "line 2: is a list, not an object",
        "line 3: has no column 'prompt'; its columns are: 'x'",
        "line 4: is blank",
        "line 5: field 'prompt' is a number, not text",
        "line 6: is not UTF-8 at byte 13 of the line",
        "a cat",
    ]
    assert [dict(row.fields) for row in PromptFile(path, faulty=True)][4] == {"id": 7}


def test_rows_of_parquet_that_can_not_be_used_have_faults(tmp_path: Path) -> None:
    path = write_prompts(tmp_path / "p.parquet", ["a cat", None, " "])
    assert faults_of(path) == ["a cat", "row 2: field 'prompt' is null", "row 3: field 'prompt' is empty"]


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("p.csv", "id,text\n1,a cat\n", "has no column 'prompt'"),
        ("p.csv", b"id,prompt\xff\n1,a cat\n", "line 1: is not UTF-8"),
        ("p.csv", 'id,prompt\n1,"a cat\n', "is not valid CSV"),
        ("p.csv", f"id,prompt\n1,{'a' * 5_000_000}\n2,a cat\n", "line 2: is longer than 4,194,304 bytes"),
        ("p.txt.gz", gzip.compress(b"a cat\n" * 1_000)[:-9], "can't be read"),
        ("p.parquet", b"PAR1", "is damaged or not a Parquet file"),
    ],
    ids=["column", "encoding of the header", "quotes", "a line without end", "compression", "no parquet"],
)
def test_a_file_whose_rows_can_not_be_told_apart_is_refused_all_the_same(
    file: File, name: str, content: str | bytes, fault: str
) -> None:
    with pytest.raises(DataError, match=fault):
        faults_of(file(name, content))


@pytest.mark.parametrize("content", [b"", b"\n" * 100_000], ids=["empty", "blank"])
def test_a_file_without_rows_has_none_then(file: File, content: bytes) -> None:
    assert faults_of(path := file("p.txt", content)) == []
    assert PromptFile(path, faulty=True).other_columns() is None


def test_blank_lines_are_counted_and_not_held(file: File) -> None:
    path = file("p.txt", b"\n" * 300_000 + b"a cat\n")
    tracemalloc.start()
    try:
        rows = sum(1 for _ in PromptFile(path, faulty=True))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert rows == 300_001
    assert peak < 5_000_000


def test_the_columns_are_those_of_the_first_row_that_can_be_used(file: File) -> None:
    path = file("p.jsonl", 'oops\n{"id": 1, "prompt": ""}\n{"id": 2, "x": 3, "prompt": "a cat"}\n')
    assert PromptFile(path, faulty=True).other_columns() == ["id", "x"]
    assert PromptFile(path, fields=["x", "y"], faulty=True).other_columns() == ["x"]


@pytest.mark.parametrize("suffix", [".txt", ".csv", ".jsonl"])
def test_a_line_of_ten_megabytes_is_refused_without_being_read_whole(tmp_path: Path, suffix: str) -> None:
    path = write_prompts(tmp_path / f"p{suffix}", ["a" * 10_000_000])
    tracemalloc.start()
    try:
        fault = fault_of(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert "is longer than" in fault
    assert peak < 10_000_000


@pytest.mark.parametrize("damage", ["cut", "scrambled", "not parquet", "empty"])
def test_a_damaged_parquet_file_is_refused(tmp_path: Path, damage: str) -> None:
    path = write_prompts(tmp_path / "p.parquet", [f"{n} {SECRET}" for n in range(5000)])
    whole = path.read_bytes()
    path.write_bytes(
        {
            "cut": whole[: len(whole) // 2],
            "scrambled": whole[:100] + bytes(b ^ 0xFF for b in whole[100 : len(whole) // 2]) + whole[len(whole) // 2 :],
            "not parquet": b"a cat\n" * 100,
            "empty": b"",
        }[damage]
    )
    assert fault_of(path).startswith("p.parquet: ")


def test_parquet_text_that_is_not_utf_8_is_refused_with_its_field(tmp_path: Path) -> None:
    text = pa.Array.from_buffers(pa.string(), 1, pa.array([b"B\xe4r"]).buffers())
    pq.write_table(pa.table({"prompt": text}), tmp_path / "p.parquet")
    assert fault_of(tmp_path / "p.parquet") == "p.parquet: rows 1 to 1: field 'prompt' is not UTF-8"


def test_the_csv_field_limit_of_the_process_is_left_alone(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    prompts_of(write_prompts(tmp_path / "p.csv", ["a" * MAX_PROMPT_CHARS]))
    assert csv.field_size_limit() == before


# --- compressed files, tabs, chosen fields


def packed(path: Path, compression: str) -> Path:
    """The file, compressed, in the place of itself."""
    target = path.with_name(path.name + {"gzip": ".gz", "zstd": ".zst"}[compression])
    with pa.CompressedOutputStream(str(target), compression) as stream:
        stream.write(path.read_bytes())
    path.unlink()
    return target


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
@pytest.mark.parametrize("suffix", [*FORMATS, ".tsv"])
def test_a_compressed_file_is_read_as_what_is_in_it(tmp_path: Path, suffix: str, compression: str) -> None:
    prompts = [f"a cat, no. {n}" for n in range(3_000)]
    plain = write_prompts(tmp_path / ("p.csv" if suffix == ".tsv" else f"p{suffix}"), prompts)
    if suffix == ".tsv":
        with open(tmp_path / "p.tsv", "w", newline="") as handle:
            csv.writer(handle, delimiter="\t").writerows([["id", "prompt"], *enumerate(prompts)])
        plain = tmp_path / "p.tsv"
    assert prompts_of(packed(plain, compression)) == prompts


def test_a_gzip_of_several_members_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "p.txt.gz"
    path.write_bytes(gzip.compress(b"a cat\na d") + gzip.compress(b"og\n"))
    assert prompts_of(path) == ["a cat", "a dog"]


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
@pytest.mark.parametrize("suffix", FORMATS)
def test_a_compressed_file_that_was_cut_off_is_refused(tmp_path: Path, suffix: str, compression: str) -> None:
    prompts = [f"{n} {'cat' * (n % 7)}" for n in range(3_000)]
    path = packed(write_prompts(tmp_path / f"p{suffix}", prompts), compression)
    path.write_bytes(path.read_bytes()[:-20])
    assert fault_of(path) == f"{path.name}: can't be read: Truncated compressed stream"


@pytest.mark.parametrize("name", ["p.txt.gz", "p.csv.zst"])
def test_a_file_that_is_not_compressed_as_its_name_says_is_refused(file: File, name: str) -> None:
    assert fault_of(file(name, f"prompt\n{SECRET}\n")).startswith(f"{name}: can't be read: ")


def test_a_line_that_unpacks_to_a_thousand_times_its_size_is_not_held(file: File) -> None:
    path = file("p.txt.gz", gzip.compress(b"a" * 100_000_000, 1))
    tracemalloc.start()
    try:
        fault = fault_of(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert fault == "p.txt.gz: line 1: is longer than 100,000 characters"
    assert peak < 10_000_000


def test_a_tsv_is_a_csv_with_tabs(file: File) -> None:
    path = file("p.tsv", 'id\tprompt\n7\t"a ""cat"",\ta dog"\n')
    assert list(read_prompts(path)) == [PromptRow(1, 'a "cat",\ta dog', {"id": "7"})]
    assert fault_of(file("q.tsv", "id\tprompt\n7\n")) == "q.tsv: row 1 (line 2): has 1 field where the header has 2"


@pytest.mark.parametrize("suffix", TABLES)
def test_only_the_fields_that_are_asked_for_are_read(tmp_path: Path, suffix: str) -> None:
    path = write_prompts(tmp_path / f"p{suffix}", ["a cat", "a dog"])
    assert [row.fields for row in PromptFile(path, fields=())] == [{}, {}]
    assert [int(row.fields["id"]) for row in PromptFile(path, fields=["id"])] == [0, 1]
    assert PromptFile(path).other_columns() == ["id"]


@pytest.mark.parametrize("suffix", [*FORMATS, ".txt.gz", ".csv.zst"])
def test_the_bytes_that_were_read_grow_to_those_of_the_file(tmp_path: Path, suffix: str) -> None:
    plain, _, end = suffix.removeprefix(".").partition(".")
    prompts = [f"{n} {hashlib.sha256(str(n).encode()).hexdigest()}" for n in range(60_000)]
    path = write_prompts(tmp_path / f"p.{plain}", prompts)
    if end:
        path = packed(path, {"gz": "gzip", "zst": "zstd"}[end])
    prompt_file, seen = PromptFile(path), []
    for row in prompt_file:
        if row.number % 20_000 == 0:
            seen.append(prompt_file.bytes_read / path.stat().st_size)
    assert prompt_file.bytes_read == pytest.approx(path.stat().st_size, abs=1)
    assert seen == pytest.approx([1 / 3, 2 / 3, 1], abs=0.25)


# --- concepts


def test_concepts_are_read_from_lines(file: File) -> None:
    assert read_concepts(file("c.txt", "gore\n  a gun \n\n")) == [ConceptEntry("gore"), ConceptEntry("a gun")]


def test_concepts_are_read_from_a_json_list(file: File) -> None:
    items = ["gore", {"name": " a gun "}, {"name": "slur", "category": "hate", "threshold": 3}]
    assert read_concepts(file("c.json", json.dumps(items, indent=1))) == [
        ConceptEntry("gore"),
        ConceptEntry("a gun"),
        ConceptEntry("slur", "hate", 3.0),
    ]


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("", "has no concepts"),
        ("\n\n", "has no concepts"),
        ("gore\n \ngun\n", "line 2: is blank"),
        ("gore\ngun\nGORE \n", "line 3: the concept repeats that of line 1"),
        (b"gore\nB\xe4r\n", "line 2: is not UTF-8 at byte 2 of the line"),
        ("g" * 10_000_000, "line 1: is longer than 100,000 characters"),
    ],
)
def test_a_text_file_of_concepts_that_can_not_be_used_is_refused(file: File, content: str | bytes, fault: str) -> None:
    path = file("c.txt", content)
    with pytest.raises(DataError) as raised:
        read_concepts(path)
    assert str(raised.value) == f"{path}: {fault}"


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("", "has no concepts"),
        ("[]", "has no concepts"),
        ('["gore"', "is not valid JSON (Expecting ',' delimiter; character 8)"),
        ('{"name": "gore"}', "is an object, not a list of concepts"),
        ('["gore", 5]', "item 2: is a number, not a concept's name or an object"),
        ('["gore", "  "]', "item 2: the concept is empty"),
        ('["gore", {"name": "Gore"}]', "item 2: the concept repeats that of item 1"),
        ('[{"category": "hate"}]', "item 1: field 'name' is null"),
        ('[{"name": ""}]', "item 1: field 'name' is empty"),
        ('[{"name": "gore", "category": 5}]', "item 1: field 'category' is a number, not text"),
        ('[{"name": "gore", "category": ""}]', "item 1: field 'category' is empty"),
        ('[{"name": "gore", "treshold": 5}]', "item 1: has an unknown field 'treshold'"),
        ('[{"name": "gore", "threshold": "5"}]', "item 1: field 'threshold' is not a finite number"),
        ('[{"name": "gore", "threshold": true}]', "item 1: field 'threshold' is not a finite number"),
        ('[{"name": "gore", "threshold": NaN}]', "item 1: field 'threshold' is not a finite number"),
        (f'[{{"name": "gore", "threshold": 1{"0" * 400}}}]', "item 1: field 'threshold' is not a finite number"),
    ],
)
def test_a_json_file_of_concepts_that_can_not_be_used_is_refused(file: File, content: str, fault: str) -> None:
    path = file("c.json", content)
    with pytest.raises(DataError) as raised:
        read_concepts(path)
    assert str(raised.value) == f"{path}: {fault}"


@pytest.mark.parametrize(
    ("name", "fault"),
    [("absent.txt", "does not exist"), ("", "is a folder"), ("c.csv", "its suffix is none of .txt, .json")],
)
def test_a_concept_file_that_can_not_be_opened_is_refused(tmp_path: Path, name: str, fault: str) -> None:
    (tmp_path / "c.csv").touch()
    with pytest.raises(DataError, match=fault):
        read_concepts(tmp_path / name)


# --- writing rows

COLUMNS: dict[str, type] = {"prompt": str, "score": float, "rank": int, "blocked": bool}
ROWS: list[dict[str, Any]] = [
    {"prompt": 'a "big",\r\nred\rcat', "score": -1.25, "rank": 1, "blocked": True},
    {"prompt": "ein B\u00e4r", "score": None, "rank": None, "blocked": False},
]


def write(path: Path, rows: Sequence[dict[str, Any]], columns: dict[str, type] = COLUMNS) -> Path:
    with open_writer(path, columns) as writer:
        for row in rows:
            writer.write(row)
    return path


def test_a_csv_has_the_rows_as_text(tmp_path: Path) -> None:
    with open(write(tmp_path / "o.csv", ROWS), newline="", encoding="utf-8") as handle:
        assert list(csv.reader(handle)) == [
            ["prompt", "score", "rank", "blocked"],
            ['a "big",\r\nred\rcat', "-1.25", "1", "true"],
            ["ein B\u00e4r", "", "", "false"],
        ]


def test_lines_of_a_csv_end_in_a_newline_alone(tmp_path: Path) -> None:
    assert write(tmp_path / "o.csv", [{"a": "x"}], {"a": str}).read_bytes() == b"a\nx\n"


def test_a_jsonl_has_the_rows(tmp_path: Path) -> None:
    lines = write(tmp_path / "o.jsonl", ROWS).read_text(encoding="utf-8").split("\n")
    assert [json.loads(line) for line in lines[:-1]] == ROWS
    assert lines[-1] == ""


def test_a_parquet_has_the_rows_and_types(tmp_path: Path) -> None:
    table = pq.read_table(write(tmp_path / "o.parquet", ROWS))
    assert table.to_pylist() == ROWS
    assert table.schema.types == [pa.string(), pa.float64(), pa.int64(), pa.bool_()]


def test_a_parquet_is_written_in_groups_of_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "o.parquet", [{"n": n} for n in range(10_000)], {"n": int})
    assert pq.ParquetFile(path).num_row_groups == 3
    assert pq.read_table(path)["n"].to_pylist() == list(range(10_000))


@pytest.mark.parametrize("suffix", TABLES)
def test_a_file_without_rows_has_its_columns_or_no_line(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"o{suffix}", [])
    if suffix == ".parquet":
        assert pq.read_table(path).column_names == list(COLUMNS)
    else:
        assert path.read_text() == {".csv": "prompt,score,rank,blocked\n", ".jsonl": ""}[suffix]


@pytest.mark.parametrize("suffix", TABLES)
def test_numpy_scalars_are_written_as_numbers(tmp_path: Path, suffix: str) -> None:
    row = {"prompt": "a cat", "score": np.float32(0.5), "rank": np.int64(3), "blocked": np.bool_(True)}
    [read] = read_prompts(write(tmp_path / f"o{suffix}", [row]))
    expected = {"score": 0.5, "rank": 3, "blocked": True}
    assert read.fields == (expected if suffix != ".csv" else {"score": "0.5", "rank": "3", "blocked": "true"})


prompts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1).filter(
    lambda text: text.strip() not in {"", "nan", "NaN"}
)


@pytest.mark.parametrize("suffix", TABLES)
@given(written=st.lists(prompts, min_size=1))
def test_what_is_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, written: list[str]
) -> None:
    path = tmp_path_factory.mktemp("round") / f"o{suffix}"
    write(path, [{"prompt": prompt} for prompt in written], {"prompt": str})
    assert prompts_of(path) == written


@pytest.mark.parametrize("suffix", TABLES)
@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"prompt": 5}, "field 'prompt' is a number, not text"),
        ({"prompt": "\ud800"}, "field 'prompt' is not valid Unicode"),
        ({"score": float("nan")}, "field 'score' is not a finite number"),
        ({"score": "0.5"}, "field 'score' is not a finite number"),
        ({"rank": 0.5}, "field 'rank' is not an integer"),
        ({"rank": 2**63}, "field 'rank' is not an integer"),
        ({"blocked": 1}, "field 'blocked' is a number, not true or false"),
        ({"extra": 1}, "has the fields"),
    ],
)
def test_a_value_of_another_type_is_refused(tmp_path: Path, suffix: str, change: dict[str, Any], fault: str) -> None:
    with pytest.raises(DataError, match=rf"o{suffix}: row 2: {fault}"):
        write(tmp_path / f"o{suffix}", [ROWS[0], ROWS[0] | change])


ANY: list[Any] = ["a text", 5, -0.5, True, None, ["a", 1], {"k": [None]}]


def test_an_object_column_takes_any_value(tmp_path: Path) -> None:
    rows = [{"any": value} for value in ANY]
    as_text = ["a text", "5", "-0.5", "true", None, '["a", 1]', '{"k": [null]}']
    assert pq.read_table(write(tmp_path / "o.parquet", rows, {"any": object}))["any"].to_pylist() == as_text
    lines = write(tmp_path / "o.jsonl", rows, {"any": object}).read_text().splitlines()
    assert [json.loads(line)["any"] for line in lines] == ANY
    with open(write(tmp_path / "o.csv", rows, {"any": object}), newline="") as handle:
        assert [row["any"] for row in csv.DictReader(handle)] == [text or "" for text in as_text]


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (datetime.datetime(2026, 1, 2, 3, 4), "2026-01-02T03:04:00"),
        (decimal.Decimal("1.50"), "1.50"),
        (float("nan"), None),
        ([float("inf")], [None]),
        (np.float32(0.5), 0.5),
    ],
)
def test_values_that_json_lacks_have_a_form_in_it(tmp_path: Path, value: object, written: object) -> None:
    path = write(tmp_path / "o.jsonl", [{"any": value}], {"any": object})
    assert json.loads(path.read_text()) == {"any": written}


def test_a_value_deeper_than_the_stack_is_refused(tmp_path: Path) -> None:
    value: list[Any] = []
    for _ in range(5_000):
        value = [value]
    with pytest.raises(DataError, match="row 1: field 'any' is nested too deep"):
        write(tmp_path / "o.jsonl", [{"any": value}], {"any": object})


def test_bytes_have_no_form_as_text(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="row 1: field 'any' is bytes, which can't be written as text"):
        write(tmp_path / "o.jsonl", [{"any": b"a"}], {"any": object})


@pytest.mark.parametrize("check", [check_output, lambda path: open_writer(path, COLUMNS)])
@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("absent/o.csv", r"the folder .*absent does not exist"),
        ("o.xlsx", r"its suffix is none of \.csv, \.jsonl, \.parquet"),
        ("o.txt", "its suffix is none of"),
        ("folder.csv", "is a folder"),
    ],
)
def test_an_output_that_can_not_be_written_is_refused_at_once(
    tmp_path: Path, check: Callable[[Path], object], name: str, fault: str
) -> None:
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(DataError, match=fault):
        check(tmp_path / name)


def interrupted() -> None:
    signal.raise_signal(signal.SIGINT)


def failing() -> None:
    raise ValueError("halfway")


@pytest.mark.parametrize("suffix", TABLES)
@pytest.mark.parametrize(("stop", "error"), [(interrupted, KeyboardInterrupt), (failing, ValueError)])
@pytest.mark.parametrize("rows", [1, 10_000])
def test_an_interruption_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, suffix: str, stop: Callable[[], None], error: type[BaseException], rows: int
) -> None:
    path = tmp_path / f"o{suffix}"
    path.write_text("old")

    def write_halfway() -> None:
        with open_writer(path, COLUMNS) as writer:
            for _ in range(rows):
                writer.write(ROWS[0])
            stop()

    with pytest.raises(error):
        write_halfway()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", TABLES)
@pytest.mark.parametrize("rows", [pytest.param(1, id="on closing"), pytest.param(20_000, id="on writing")])
@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_a_full_disk_is_reported_and_leaves_the_old_file(tmp_path: Path, suffix: str, rows: int) -> None:
    path = tmp_path / f"o{suffix}"
    path.write_text("old")
    with files_limited_to(2 * rows), pytest.raises(DataError, match=rf"o{suffix}: can't be written: .*File too large"):
        write(path, [ROWS[0] | {"score": n / 7} for n in range(rows)])
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
