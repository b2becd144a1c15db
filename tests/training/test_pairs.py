"""Reading training data: every format, every count of the report, and what may never enter training."""

from __future__ import annotations

import csv
import json
import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from latentguard.errors import DataError
from latentguard.training.pairs import PairReport, TrainingPair, read_negatives, read_pairs, split_concepts
from latentguard.wording import stem_families, text_key

DATA = Path(os.environ.get("LATENTGUARD_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
COPRO = DATA / "copro"


def write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def plain(path: Path, *rows: Sequence[str]) -> Path:
    return write_csv(path, ["concept", "unsafe_prompt", "safe_prompt"], rows)


def coprov2(path: Path, *rows: Sequence[str]) -> Path:
    return write_csv(path, ["prompt", "image", "category"], rows)


def block(concept: str, category: str, first: int) -> list[tuple[str, str, str]]:
    """Ten pairs of CoProV2 rows that name the concept."""
    rows = []
    for number in range(first, first + 10):
        rows.append((f"Scene {number} shows {concept} in a street.", f"u_idx_{number:07}_0.jpg", category))
        rows.append((f"Scene {number} shows flowers in a street.", f"s_idx_{number:07}_0.jpg", category))
    return rows


def copro(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def balanced(report: PairReport) -> bool:
    dropped = (
        report.excluded_by_prompt + report.excluded_by_concept + report.contradictions + report.not_placed
        + report.duplicates
    )  # fmt: skip
    return report.pairs + dropped == report.pairs_found


class TestPlainCsv:
    def test_a_row_is_a_pair_that_says_where_it_came_from(self, tmp_path: Path) -> None:
        pairs, report = read_pairs(plain(tmp_path / "a.csv", ["arson", "He burns a barn.", "He paints a barn."]))
        assert pairs == [TrainingPair("arson", "He burns a barn.", "He paints a barn.", None, "a.csv:2")]
        assert (report.rows_read, report.pairs, report.concepts) == (1, 1, 1)

    def test_a_missing_twin_is_counted(self, tmp_path: Path) -> None:
        pairs, report = read_pairs(plain(tmp_path / "a.csv", ["arson", "He burns a barn.", " "]))
        assert pairs[0].safe is None
        assert report.without_twin == 1

    def test_several_files_are_read_in_order(self, tmp_path: Path) -> None:
        files = [plain(tmp_path / f"{name}.csv", [name, f"{name} text", ""]) for name in ("b", "a")]
        assert [pair.concept for pair in read_pairs(files)[0]] == ["b", "a"]

    @pytest.mark.parametrize(
        ("content", "complaint"),
        [
            (b"", "empty"),
            (b"concept,unsafe_prompt\n,text\n", "line 2: field concept is empty"),
            (b"concept,unsafe_prompt\narson,\n", "line 2: field unsafe_prompt is empty"),
            (b"concept,unsafe_prompt\narson\n", "line 2: does not have 2 fields"),
            (b"concept,unsafe_prompt\na,b,c\n", "line 2: does not have 2 fields"),
            (b"concept,text\na,b\n", "columns"),
            (b"concept,unsafe_prompt\narson,caf\xe9\n", "not UTF-8"),
            (b'concept,unsafe_prompt\narson,"open\n', "unexpected end of data"),
            (b"concept,unsafe_prompt\narson," + b"x" * 200_000 + b"\n", "field larger than field limit"),
        ],
    )
    def test_a_broken_file_is_an_error_that_names_the_place(
        self, tmp_path: Path, content: bytes, complaint: str
    ) -> None:
        path = tmp_path / "broken.csv"
        path.write_bytes(content)
        with pytest.raises(DataError, match=complaint) as error:
            read_pairs(path)
        assert "broken.csv" in str(error.value)
        assert "\n" not in str(error.value)

    def test_a_missing_file_is_an_error_that_names_it(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"nowhere\.csv"):
            read_pairs(tmp_path / "nowhere.csv")


class TestCoProV2:
    def test_twins_join_by_name_and_the_concept_is_told_from_the_order(self, tmp_path: Path) -> None:
        path = coprov2(tmp_path / "c.csv", *block("arson", "violence", 0), *block("zebra", "hate", 10))
        pairs, report = read_pairs(path, concepts=["arson", "zebra", "fraud"])
        assert [pair.concept for pair in pairs] == ["arson"] * 10 + ["zebra"] * 10
        assert pairs[3].unsafe.startswith("Scene 3 ")
        assert pairs[3].safe == "Scene 3 shows flowers in a street."
        assert (report.rows_read, report.pairs_found, report.pairs) == (40, 20, 20)

    def test_a_repeated_name_joins_in_order(self, tmp_path: Path) -> None:
        rows = [
            ("arson one", "u_idx_1_0.jpg", "a"),
            ("arson two", "u_idx_1_0.jpg", "a"),
            ("calm one", "s_idx_1_0.jpg", "a"),
            ("calm two", "s_idx_1_0.jpg", "a"),
        ]
        pairs, _ = read_pairs(coprov2(tmp_path / "c.csv", *rows), concepts=["arson"])
        assert [(pair.unsafe, pair.safe) for pair in pairs] == [("arson one", "calm one"), ("arson two", "calm two")]

    def test_rows_of_a_test_file_are_unsafe_and_have_no_twin(self, tmp_path: Path) -> None:
        rows = [(f"arson number {number}", f"{number:07}_0.jpg", "a") for number in range(4)]
        pairs, report = read_pairs(coprov2(tmp_path / "c.csv", *rows), concepts=["arson"])
        assert [pair.safe for pair in pairs] == [None] * 4
        assert report.without_twin == 4

    def test_a_safe_row_alone_is_counted_and_dropped(self, tmp_path: Path) -> None:
        _, report = read_pairs(coprov2(tmp_path / "c.csv", ("calm", "s_idx_1_0.jpg", "a")), concepts=["arson"])
        assert (report.rows_read, report.orphans, report.pairs) == (1, 1, 0)

    def test_rows_that_name_nothing_are_counted_as_not_placed(self, tmp_path: Path) -> None:
        path = coprov2(tmp_path / "c.csv", *block("a quiet cat", "violence", 0))
        pairs, report = read_pairs(path, concepts=["arson"])
        assert pairs == []
        assert report.not_placed == 10

    def test_without_concepts_the_file_cannot_be_used(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="list of the concepts"):
            read_pairs(coprov2(tmp_path / "c.csv", *block("arson", "violence", 0)))

    def test_a_strange_image_name_is_an_error_that_names_the_line(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="line 2: field image"):
            read_pairs(coprov2(tmp_path / "c.csv", ("arson", "picture", "a")), concepts=["arson"])


class TestCoProJson:
    RECORD: ClassVar = {"concept": "arson", "category": "violence", "prompt": "An arson.", "safe_prompt": "A barn."}

    @pytest.mark.parametrize(
        "content",
        [
            [RECORD],
            {"train": [RECORD]},
            {"train": {"arson": [RECORD]}},
            {"train": {"arson": {"category": "violence", "unsafe_prompts": ["An arson."], "safe": ["A barn."]}}},
            {"violence": {"arson": [{"unsafe_prompt": "An arson.", "safe_prompt": "A barn."}]}},
            {"val": {"id": [RECORD]}},
        ],
    )
    def test_every_nesting_gives_the_same_pair(self, tmp_path: Path, content: Any) -> None:
        pairs, report = read_pairs(copro(tmp_path / "c.json", content))
        assert [(p.concept, p.category, p.unsafe, p.safe) for p in pairs] == [
            ("arson", "violence", "An arson.", "A barn.")
        ]
        assert report.skipped == ()

    def test_held_out_splits_are_not_read_and_are_reported(self, tmp_path: Path) -> None:
        other = {**self.RECORD, "prompt": "A secret arson."}
        content = {"train": [self.RECORD], "test": {"id": [other, other]}, "val_ood": [other]}
        pairs, report = read_pairs(copro(tmp_path / "c.json", content))
        assert len(pairs) == 1
        assert report.skipped == ("c.json: test (2 records, held out)", "c.json: val_ood (1 records, held out)")

    def test_other_words_for_the_concept_make_further_pairs(self, tmp_path: Path) -> None:
        record = {**self.RECORD, "concept_synonym": ["fire-setting"], "concept_adv": "ars0n"}
        pairs, _ = read_pairs(copro(tmp_path / "c.json", [record]))
        assert [pair.unsafe for pair in pairs] == ["An arson.", "An fire-setting.", "An ars0n."]
        assert {pair.concept for pair in pairs} == {"arson"}

    def test_a_prompt_that_does_not_spell_the_concept_stays_one_pair(self, tmp_path: Path) -> None:
        record = {**self.RECORD, "prompt": "A barn burns.", "concept_synonym": ["fire-setting"]}
        assert len(read_pairs(copro(tmp_path / "c.json", [record]))[0]) == 1

    @pytest.mark.parametrize(
        ("content", "complaint"),
        [
            ({"train": {"arson": "text"}}, r"key train\.arson: a str"),
            ({"train": [{"prompt": "An arson."}]}, r"key train\[0\]: a record without a concept"),
            ([{"concept": "arson", "prompt": ["a", "b"], "safe": ["c"]}], r"key \[0\]: 2 unsafe prompts but 1 safe"),
            ([{"concept": "arson", "prompt": 7}], r"key \[0\]\.prompt"),
            ([{"concept": ["arson"], "prompt": "a"}], r"key \[0\]\.concept"),
            ([], "no records"),
        ],
    )
    def test_what_is_not_recognised_is_an_error_that_names_the_key_path(
        self, tmp_path: Path, content: Any, complaint: str
    ) -> None:
        with pytest.raises(DataError, match=complaint):
            read_pairs(copro(tmp_path / "c.json", content))

    def test_broken_json_is_an_error_that_names_the_line(self, tmp_path: Path) -> None:
        path = tmp_path / "c.json"
        path.write_text('{"train":\n [}')
        with pytest.raises(DataError, match="line 2: not JSON"):
            read_pairs(path)


class TestCleaning:
    def test_the_same_unsafe_text_again_is_dropped(self, tmp_path: Path) -> None:
        path = plain(tmp_path / "a.csv", ["arson", "A fire!", "A lamp"], ["arson", "a  FIRE", "A candle"])
        pairs, report = read_pairs(path)
        assert [pair.safe for pair in pairs] == ["A lamp"]
        assert report.duplicates == 1

    def test_of_two_duplicates_the_one_with_a_twin_stays(self, tmp_path: Path) -> None:
        path = plain(tmp_path / "a.csv", ["arson", "A fire", ""], ["arson", "A fire", "A candle"])
        assert [pair.safe for pair in read_pairs(path)[0]] == ["A candle"]

    def test_a_text_that_is_unsafe_here_and_safe_there_takes_both_pairs_out(self, tmp_path: Path) -> None:
        path = plain(tmp_path / "a.csv", ["x", "A knife.", "A spoon"], ["y", "A sword", "a knife"], ["z", "A gun", ""])
        pairs, report = read_pairs(path)
        assert [pair.concept for pair in pairs] == ["z"]
        assert report.contradictions == 2

    def test_a_pair_with_two_equal_sides_is_a_contradiction(self, tmp_path: Path) -> None:
        _, report = read_pairs(plain(tmp_path / "a.csv", ["x", "A knife.", "a knife"]))
        assert (report.pairs, report.contradictions) == (0, 1)

    @pytest.mark.parametrize("excluded", ["a KNIFE", "A spoon!"])
    def test_a_pair_with_an_excluded_prompt_on_either_side_is_dropped(self, tmp_path: Path, excluded: str) -> None:
        path = plain(tmp_path / "a.csv", ["x", "A knife.", "A spoon"], ["x", "A gun", ""])
        pairs, report = read_pairs(path, exclude_prompts=[excluded])
        assert [pair.unsafe for pair in pairs] == ["A gun"]
        assert report.excluded_by_prompt == 1

    def test_an_excluded_concept_is_dropped_however_it_is_spelt(self, tmp_path: Path) -> None:
        path = plain(tmp_path / "a.csv", ["anti-Semitism", "A", ""], ["arson", "B", ""])
        pairs, report = read_pairs(path, exclude_concepts=["Antisemitism"])
        assert [pair.concept for pair in pairs] == ["arson"]
        assert report.excluded_by_concept == 1

    def test_a_text_of_an_excluded_concept_is_dropped_under_every_concept(self, tmp_path: Path) -> None:
        path = plain(tmp_path / "a.csv", ["arson", "A fire", ""], ["guilt", "A fire", ""])
        pairs, report = read_pairs(path, exclude_concepts=["guilt"])
        assert pairs == []
        assert report.excluded_by_concept == 2

    def test_a_placed_pair_that_names_an_excluded_concept_in_passing_is_dropped(self, tmp_path: Path) -> None:
        path = plain(tmp_path / "a.csv", ["arson", "A noose in a burning barn", "A barn"])
        pairs, report = read_pairs(path, exclude_concepts=["noose"])
        assert pairs == []
        assert report.excluded_by_concept == 1

    def test_an_unplaced_pair_that_names_an_excluded_concept_is_counted_as_excluded(self, tmp_path: Path) -> None:
        rows = [("He is full of guilts.", "u_idx_1_0.jpg", "a"), ("A quiet day.", "u_idx_2_0.jpg", "a")]
        path = coprov2(tmp_path / "c.csv", *rows)
        _, report = read_pairs(path, concepts=["arson", "guilt"], exclude_concepts=["guilt"])
        assert (report.excluded_by_concept, report.not_placed) == (1, 1)

    def test_every_pair_found_is_kept_or_counted_once(self, tmp_path: Path) -> None:
        rows = [["x", "A knife", "a knife"], ["x", "B", "c"], ["x", "b", "d"], ["y", "E", ""], ["z", "F", "g"]]
        report = read_pairs(plain(tmp_path / "a.csv", *rows), exclude_concepts=["y"], exclude_prompts=["g"])[1]
        assert balanced(report)
        assert (report.pairs_found, report.pairs) == (5, 1)

    def test_the_report_can_be_printed_and_written_as_json(self, tmp_path: Path) -> None:
        report = read_pairs(plain(tmp_path / "a.csv", ["x", "A", "b"], ["x", "a", "c"]))[1]
        assert "1 pairs dropped: the same unsafe text again" in report.lines()
        assert json.loads(json.dumps(report.as_dict()))["duplicates"] == 1


class TestNegatives:
    def test_each_prompt_is_read_once(self, tmp_path: Path) -> None:
        text = tmp_path / "a.txt"
        text.write_text("A dog.\nA cat.\na DOG\n", encoding="utf-8")
        table = write_csv(tmp_path / "b.csv", ["id", "prompt"], [["1", "A cat"], ["2", "A bird"]])
        assert read_negatives([text, table]) == ["A dog.", "A cat.", "A bird"]


def pairs_of(*concepts: str) -> list[TrainingPair]:
    return [TrainingPair(name, f"{name} {n}", None, None, "here") for name in concepts for n in range(3)]


CONCEPTS = [f"topic{number}" for number in range(38)] + ["sexism", "sexist"]


class TestSplit:
    def test_no_concept_is_on_both_sides_and_no_pair_is_lost(self) -> None:
        pairs = pairs_of(*CONCEPTS)
        train, held_out = split_concepts(pairs, held_out=0.1, seed=1)
        assert not {pair.concept for pair in train} & {pair.concept for pair in held_out}
        assert sorted(map(repr, train + held_out)) == sorted(map(repr, pairs))
        assert len({pair.concept for pair in held_out}) == 4

    def test_the_order_of_the_pairs_does_not_matter(self) -> None:
        pairs = pairs_of(*CONCEPTS)
        shuffled = random.Random(0).sample(pairs, len(pairs))
        assert set(split_concepts(pairs, seed=3)[1]) == set(split_concepts(shuffled, seed=3)[1])

    def test_another_seed_holds_out_other_concepts(self) -> None:
        pairs = pairs_of(*CONCEPTS)
        assert split_concepts(pairs, seed=3)[1] != split_concepts(pairs, seed=4)[1]

    def test_relatives_stay_together(self) -> None:
        for seed in range(40):
            held_out = {pair.concept for pair in split_concepts(pairs_of(*CONCEPTS), held_out=0.3, seed=seed)[1]}
            assert ("sexism" in held_out) == ("sexist" in held_out)

    def test_a_word_that_many_names_share_makes_no_relatives(self) -> None:
        names = [f"{kind} abuse" for kind in ("child", "elder", "animal", "power", "drug")]
        assert len(set(stem_families(names).values())) == 5

    @pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
    def test_a_share_that_is_none_is_refused(self, share: float) -> None:
        with pytest.raises(DataError, match="share"):
            split_concepts(pairs_of("a"), held_out=share)


@pytest.mark.skipif(not COPRO.is_dir(), reason="the CoPro files are not here (LATENTGUARD_DATA)")
class TestRealFiles:
    def test_coprov2_is_placed_and_holds_no_excluded_concept(self) -> None:
        ours = json.loads((COPRO / "concepts_id.json").read_text(encoding="utf-8"))
        barred = json.loads((COPRO / "concepts_ood.json").read_text(encoding="utf-8"))
        pairs, report = read_pairs(COPRO / "coprov2_train.csv", concepts=ours + barred, exclude_concepts=barred)
        assert (report.rows_read, report.pairs_found, report.orphans) == (32086, 16043, 0)
        assert balanced(report)
        assert report.pairs > 9000
        assert report.not_placed < 0.2 * report.pairs_found
        assert not {text_key(pair.concept) for pair in pairs} & {text_key(name) for name in barred}
