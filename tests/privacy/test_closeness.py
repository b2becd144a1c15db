"""Closeness: pycanon's figures for a table, what is said of a table that can't be measured, and the command."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.cli import main
from privacy.closeness import draw_chart, measure, read_table, report
from privacy.errors import DataError

pytest.importorskip("pycanon", reason="closeness is measured by pycanon, of the extra privacy")
pd = pytest.importorskip("pandas")

# pycanon groups by lists of one column, of which pandas 4 will name the groups otherwise.
pytestmark = pytest.mark.filterwarnings("ignore:In a future version, the keys of `groups`")

# Two groups of four: a has 2 low, 1 mid, 1 high; b 1, 2, 1; all together 3, 3, 2.
ROWS = [
    ("a", "low"),
    ("a", "low"),
    ("a", "mid"),
    ("a", "high"),
    ("b", "low"),
    ("b", "mid"),
    ("b", "mid"),
    ("b", "high"),
]
TABLE = pd.DataFrame([(group, "x", level) for group, level in ROWS], columns=["group", "same", "level"])
ORDER = {"level": ["low", "mid", "high"]}


def _published() -> Path:
    folder = Path(os.environ.get("LATENTGUARD_DATA", Path(__file__).parents[3] / "shared" / "data"))
    path = folder / "privacyasst" / "samples_emotion.csv"
    if not path.is_file():
        pytest.skip("the samples of PrivacyAsst are not here (privacyasst/samples_emotion.csv under $LATENTGUARD_DATA)")
    return path


def test_the_published_samples_have_the_published_closeness() -> None:
    table = read_table(_published(), ["skin-color", "hair-color", "race"], rows=1000)
    closeness = measure(table, ["skin-color", "hair-color"], ["race"])
    assert round(closeness.attributes[0].t_closeness, 4) == 0.1435
    assert (closeness.k_anonymity, closeness.attributes[0].l_diversity, closeness.groups) == (69, 3, 12)


def test_a_table_small_enough_for_pencil_and_paper() -> None:
    closeness = measure(TABLE, ["group", "same"], ["level"])
    level = closeness.attributes[0]
    assert (closeness.rows, closeness.groups, closeness.k_anonymity, level.l_diversity) == (8, 2, 4, 3)
    # Both groups: half of |1/8| + |1/8| + 0.
    assert level.t_closeness == pytest.approx(1 / 8)
    assert [(each.group, each.size) for each in level.groups] == [("a, x", 4), ("b, x", 4)]


def test_the_ordered_distance_counts_how_far_values_are_apart() -> None:
    # In both groups one part in eight moves by one of two steps.
    ordered = measure(TABLE, ["group"], ["level"], ORDER).attributes[0]
    assert ordered.t_closeness == pytest.approx(1 / 16)
    assert ordered.ordered


def test_numbers_need_no_order() -> None:
    table = TABLE.assign(level=TABLE["level"].map({"low": "1", "mid": "9", "high": "10"}))
    assert measure(table, ["group"], ["level"], {"level": []}).attributes[0].t_closeness == pytest.approx(1 / 16)


def test_one_value_alone_is_at_no_distance() -> None:
    same = measure(TABLE, ["group"], ["same"], {"same": ["x"]}).attributes[0]
    assert (same.t_closeness, same.l_diversity) == (0.0, 1)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("uvwx")), min_size=2, max_size=40))
@settings(max_examples=15)
def test_the_furthest_group_is_as_far_as_pycanon_says(rows: list[tuple[str, str]]) -> None:
    table = pd.DataFrame(rows, columns=["group", "value"])
    for ordered in ({}, {"value": list("uvwx")}):
        attribute = measure(table, ["group"], ["value"], ordered).attributes[0]
        assert attribute.groups[0].distance == pytest.approx(attribute.t_closeness)
        assert sum(each.size for each in attribute.groups) == len(rows)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_both_formats_give_the_same(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"table{suffix}"
    if suffix == ".csv":
        TABLE.to_csv(path, index=False)
    else:
        TABLE.to_parquet(path)
    assert measure(read_table(path, ["group", "level"]), ["group"], ["level"]) == measure(TABLE, ["group"], ["level"])
    assert len(read_table(path, ["group"], rows=3)) == 3


def test_a_column_of_other_types_is_read_as_text(tmp_path: Path) -> None:
    path = tmp_path / "table.parquet"
    pd.DataFrame({"group": [1, 1, 2], "value": [True, False, True]}).to_parquet(path)
    assert measure(read_table(path, ["group", "value"]), ["group"], ["value"]).k_anonymity == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("group,level\na,low\nb,\n", "row 2: field 'level' is empty"),
        ("group,other\na,low\n", "has no column 'level'; its columns are: group, other"),
        ("group,level,level\na,b,c\n", "has more than one column 'level'"),
        ("group,level\n", "has no rows"),
        ("group,level\na,b,c,d\n", "row 1: has 4 fields where the header has 2"),
        ("", "has no column"),
    ],
)
def test_a_table_that_cannot_be_measured_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "table.csv"
    path.write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        read_table(path, ["group", "level"])
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("identifiers", "sensitive", "ordered", "message"),
    [
        ([], ["level"], {}, "a quasi-identifier"),
        (["group"], ["group"], {}, "named twice"),
        (["group"], ["height"], {}, "no column 'height'"),
        (["group"], ["level"], {"group": []}, "no sensitive attribute"),
        (["group"], ["level"], {"level": ["low", "mid"]}, "lacks a value: 'high'"),
        (["group"], ["level"], {"level": []}, "no numbers"),
    ],
)
def test_columns_that_make_no_sense_are_refused(
    identifiers: list[str], sensitive: list[str], ordered: dict[str, list[str]], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        measure(TABLE, identifiers, sensitive, ordered)


def test_the_command_prints_a_table_and_draws_a_chart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, chart = tmp_path / "table.csv", tmp_path / "chart.png"
    TABLE.to_csv(path, index=False)
    arguments = ["closeness", str(path), "--qi", "group", "--sa", "level", "--chart", str(chart)]
    assert main([*arguments, "--ordered", "level=low,mid,high"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split() == ["level", "ordered", "3", "0.0625"]
    assert chart.read_bytes().startswith(b"\x89PNG")
    assert main([*arguments[:-1], str(tmp_path / "chart.gif")]) == 2
    assert main(["closeness", str(tmp_path / "none.csv"), "--qi", "a", "--sa", "b"]) == 2


def test_a_chart_of_many_groups_shows_the_furthest(tmp_path: Path) -> None:
    table = pd.DataFrame({"group": [str(number) for number in range(60)], "value": ["x", "y", "y"] * 20})
    closeness = measure(table, ["group"], ["value"])
    draw_chart(closeness, tmp_path / "chart.svg")
    assert (tmp_path / "chart.svg").read_text().startswith("<?xml")
    assert "60 rows in 60 groups" in report(closeness)
