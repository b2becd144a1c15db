"""Rows from files and from data sets, and what is said of those that can't be used."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.errors import DataError, MissingDependencyError
from privacy.passkey.data import held_out, read_rows, subset
from privacy.passkey.tasks import TASKS

DATA = Path(os.environ.get("LATENTGUARD_DATA", Path(__file__).resolve().parents[4] / "shared" / "data"))
SENTENCE = ("sentence", "label")
TAGS = ("tokens", "tags")


def written(folder: Path, name: str, content: str) -> str:
    (folder / name).write_text(content, encoding="utf-8")
    return str(folder / name)


def values(place: str, columns: tuple[str, ...]) -> list[tuple[object, ...]]:
    return read_rows(place, columns, split="train").values


def test_fields_of_a_tsv_are_never_quoted(tmp_path: Path) -> None:
    place = written(tmp_path, "a.tsv", 'label\tsentence\n1\tso-called " plot\n0\t"dull"\n')
    assert values(place, SENTENCE) == [('so-called " plot', "1"), ('"dull"', "0")]


def test_fields_of_a_csv_may_be_quoted(tmp_path: Path) -> None:
    place = written(tmp_path, "a.csv", 'sentence,label\n"good, really",yes\n')
    assert values(place, SENTENCE) == [("good, really", "yes")]


def test_jsonl_and_parquet_give_the_same_rows(tmp_path: Path) -> None:
    rows = [{"tokens": ["Ada", "wrote"], "tags": ["B-PER", "O"]}, {"tokens": ["Rome"], "tags": ["B-LOC"]}]
    lines = written(tmp_path, "a.jsonl", "\n".join(map(json.dumps, rows)))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert values(lines, TAGS) == values(str(tmp_path / "a.parquet"), TAGS)
    assert values(lines, TAGS) == [(row["tokens"], row["tags"]) for row in rows]


def test_a_dot_reaches_into_objects(tmp_path: Path) -> None:
    place = written(tmp_path, "a.jsonl", '{"translation": {"en": "bread", "de": "Brot"}}\n')
    assert values(place, ("translation.en", "translation.de")) == [("bread", "Brot")]


@pytest.mark.parametrize(
    "line",
    ["{token} {tag}", "{token} {tag} 0", "{token} NN {phrase} {tag}"],
    ids=["token and tag", "another column after the tag", "as in the shared task"],
)
def test_the_tag_column_of_a_conll_file_is_found(line: str, tmp_path: Path) -> None:
    def row(token: str, phrase: str, tag: str) -> str:
        return line.format(token=token, phrase=phrase, tag=tag)

    document = row("-DOCSTART-", "O", "O")
    lines = [document, "", row("Ada", "B-NP", "B-PER"), row("wrote", "B-VP", "O"), "", "", row("Rome", "O", "I-LOC")]
    place = written(tmp_path, "a.txt", "\n".join(lines))
    assert values(place, TAGS) == [(["Ada", "wrote"], ["B-PER", "O"]), (["Rome"], ["I-LOC"])]


def test_the_columns_of_a_conll_file_may_be_numbered(tmp_path: Path) -> None:
    place = written(tmp_path, "a.conll", "1 Ada NNP\n2 wrote VBD\n")
    assert values(place, ("2", "3")) == [(["Ada", "wrote"], ["NNP", "VBD"])]
    with pytest.raises(DataError, match="has no column '4'"):
        read_rows(place, ("2", "4"), split="train")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.tsv", "", "is empty"),
        ("a.tsv", "sentence\tlabel\n", "has no rows"),
        ("a.tsv", "text\tlabel\na\t1\n", "has no column 'sentence', only text, label"),
        ("a.tsv", "sentence\tlabel\na\tb\t1\n", "line 2: has 3 fields where the header has 2"),
        ("a.csv", 'sentence,label\n"a,1\n', "line 2: can't be read"),
        ("a.jsonl", "[1]\n", "line 1: is not an object"),
        ("a.jsonl", "{\n", "line 1: is not JSON"),
        ("a.jsonl", '{"sentence": "a"}\n', "line 1: has no column 'label'"),
        ("a.parquet", "PAR", "is no readable parquet file"),
        ("a.txt", "Ada NNP\n", "no column after the first has tags only"),
        ("a.txt", "Ada B-PER\nwrote\n", "line 2: has 1 columns where the first line has 2"),
        ("a.doc", "", "its suffix is none of"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(name: str, content: str, said: str, tmp_path: Path) -> None:
    place = written(tmp_path, name, content)
    with pytest.raises(DataError, match=said) as caught:
        read_rows(place, SENTENCE, split="train")
    assert place in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read_rows(str(tmp_path / "a.tsv"), SENTENCE, split="train")


@pytest.mark.parametrize(
    ("task", "row", "said"),
    [
        ("classification", {"sentence": None, "label": "1"}, "field 'sentence': is missing"),
        ("classification", {"sentence": "a", "label": ""}, "field 'label': is missing"),
        ("classification", {"sentence": "a", "label": 0.5}, "field 'label': is neither text nor a whole number"),
        ("pairs", {"premise": "a", "hypothesis": 3, "label": 0}, "field 'hypothesis': is no text"),
        ("tagging", {"tokens": "Ada", "tags": ["O"]}, "field 'tokens': is no list of texts"),
        ("tagging", {"tokens": ["Ada", "wrote"], "tags": ["O"]}, "field 'tags': has 1 tags for 2 tokens"),
        ("translation", {"source": "a", "target": None}, "field 'target': is missing"),
    ],
)
def test_a_row_that_cannot_be_used_is_named_and_not_quoted(
    task: str, row: dict[str, object], said: str, tmp_path: Path
) -> None:
    place = written(tmp_path, "a.jsonl", json.dumps(row) + "\n")
    with pytest.raises(DataError, match=f"row 1: {said}"):
        TASKS[task].examples(read_rows(place, TASKS[task].columns, split="train"))


def test_numbered_classes_keep_the_order_of_their_numbers(tmp_path: Path) -> None:
    place = written(tmp_path, "a.tsv", "sentence\tlabel\na\t10\nb\t9\nc\t0\n")
    task = TASKS["classification"]
    assert task.labels(task.examples(read_rows(place, SENTENCE, split="train"))) == ["0", "9", "10"]


def test_a_text_column_taken_for_the_label_is_noticed(tmp_path: Path) -> None:
    place = written(tmp_path, "a.tsv", "sentence\tlabel\n" + "".join(f"a\ttext {n}\n" for n in range(1001)))
    task = TASKS["classification"]
    with pytest.raises(DataError, match="1,001 different values"):
        task.labels(task.examples(read_rows(place, SENTENCE, split="train")))


@given(st.integers(1, 60), st.integers(0, 60), st.integers(0, 9))
def test_a_subset_is_drawn_by_the_seed_and_keeps_the_order(size: int, count: int, seed: int) -> None:
    drawn = subset(range(size), count, seed)
    assert drawn == sorted(set(drawn))
    assert len(drawn) == min(count, size)
    assert drawn == subset(range(size), count, seed)


@given(st.integers(2, 60), st.floats(0.01, 0.99), st.integers(0, 9))
def test_what_is_held_out_is_not_trained_on(size: int, share: float, seed: int) -> None:
    train, measured = held_out(range(size), share, seed)
    assert sorted(train + measured) == list(range(size))
    assert train
    assert measured


def test_a_data_set_library_reads_the_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason="needs datasets")
    if not hasattr(datasets, "load_dataset"):
        pytest.skip("needs datasets")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    os.mkdir("films")
    features = datasets.Features(
        {"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])}
    )
    data = datasets.Dataset.from_dict({"sentence": ["a", "b"], "label": [1, 0]}, features=features)
    data.to_parquet("films/train-00000-of-00001.parquet")
    data.select([0]).to_parquet("films/validation-00000-of-00001.parquet")
    assert values("hub:./films", SENTENCE) == [("a", "good"), ("b", "bad")]
    assert read_rows("hub:./films", SENTENCE, split="validation").values == [("a", "good")]
    assert values("hub:./films::validation", SENTENCE) == [("a", "good")]
    with pytest.raises(DataError, match=r"hub:\./nowhere: can't be loaded"):
        values("hub:./nowhere", SENTENCE)


def test_without_the_library_a_data_set_of_the_hub_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingDependencyError, match="pip install datasets"):
        values("hub:glue:sst2", SENTENCE)


@pytest.mark.parametrize(
    ("task", "file", "rows", "labels"),
    [
        ("classification", "sst2/train.tsv", 67349, ["0", "1"]),
        ("classification", "sst2/dev.tsv", 872, ["0", "1"]),
        (
            "tagging",
            "conll2003/test.txt",
            3453,
            ["B-LOC", "B-MISC", "B-ORG", "B-PER", "I-LOC", "I-MISC", "I-ORG", "I-PER", "O"],
        ),
    ],
)
def test_the_published_files_are_read_whole(task: str, file: str, rows: int, labels: list[str]) -> None:
    if not (DATA / file).is_file():
        pytest.skip(f"{file} is not there; set LATENTGUARD_DATA to the folder that holds it")
    examples = TASKS[task].examples(read_rows(str(DATA / file), TASKS[task].columns, split="train"))
    assert len(examples) == rows
    assert TASKS[task].labels(examples) == labels
