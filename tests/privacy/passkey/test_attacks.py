"""Attacks on passkey models find what they should where it is there to be found, and nothing where it isn't."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from passkey_models import LINES, PASSKEY

from privacy.cli import main
from privacy.errors import AttackError, DataError
from privacy.passkey import PassKey, PasskeyClient, Stretching, convert
from privacy.passkey.attacks.corpus import Corpus, Ids, first_words, read_lines
from privacy.passkey.attacks.defences import Homophones, passages, shuffled
from privacy.passkey.attacks.embedding import Rows, by_known_pairs, by_nearest_row, by_principal_axes, load_model, table
from privacy.passkey.attacks.frequency import NO_GUESS, by_context, by_rank
from privacy.passkey.attacks.scoring import recovery
from privacy.passkey.transforms import Transform

SIZE, WIDTH = 600, 24
SPECIAL = {0: 0}


@pytest.fixture(scope="module")
def language() -> Callable[[int, int], list[Ids]]:
    """Draws sentences of a made-up language: 300 words, frequencies as Zipf's, each liking a few others after it."""
    random = np.random.default_rng(3)
    words = np.arange(1, 301)
    frequency = 1.0 / words
    liking = frequency * random.gamma(0.15, size=(300, 300))
    liking /= liking.sum(axis=1, keepdims=True)
    steps = np.cumsum(liking, axis=1)

    def draw(tokens: int, seed: int) -> list[Ids]:
        source = np.random.default_rng(seed)
        sentences = []
        for _ in range(tokens // 20):
            word, sentence = int(source.integers(300)), [0]
            for chance in source.random(20):
                word = min(int(np.searchsorted(steps[word], chance)), 299)
                sentence.append(int(words[word]))
            sentences.append(np.array(sentence))
        return sentences

    return draw


@pytest.fixture(scope="module")
def plain() -> Rows:
    """Embeddings such as trained ones: few strong directions, many weak ones, lopsided."""
    random = np.random.default_rng(5)
    rows = random.gamma(1.0, size=(SIZE, WIDTH)) * np.arange(1, WIDTH + 1) ** -0.5
    return rows.astype(np.float32)


def encrypted(sequences: list[Ids], seed: int = 11) -> tuple[Corpus, Ids]:
    """What an operator sees of `sequences` over 301 words, and the plain id of each type."""
    new = shuffled(301, [0], seed)
    corpus = Corpus.of([new[ids] for ids in sequences])
    return corpus, np.argsort(new)[corpus.types]


def mapped(plain: Rows, transform: Transform, noise: float = 0.0) -> tuple[Rows, Ids]:
    """The table of a conversion, and the plain id of each row."""
    random = np.random.default_rng(17)
    lengths = np.linalg.norm(plain, axis=1, keepdims=True)
    noisy = plain + noise * lengths / np.sqrt(WIDTH) * random.standard_normal(plain.shape)
    new = random.permutation(SIZE)
    rows = np.empty_like(plain)
    rows[new] = transform.map(bytes(range(32)), WIDTH, float(lengths.mean()))(noisy)
    return rows, np.argsort(new)


def test_context_reads_most_of_a_text_that_frequencies_alone_hardly_tell(language: Callable[..., list[Ids]]) -> None:
    observed, truth = encrypted(language(20_000, 1))
    known = Corpus.of(language(20_000, 2))
    ranked = recovery(observed, by_rank(observed, known, SPECIAL), truth, SPECIAL)
    read = recovery(observed, by_context(observed, known, SPECIAL), truth, SPECIAL)
    assert ranked.tokens < 0.5
    assert read.tokens > 0.9
    assert read.types > 0.6


def test_context_tells_nothing_of_words_in_random_order(language: Callable[..., list[Ids]]) -> None:
    random = np.random.default_rng(8)

    def jumbled(sequences: list[Ids]) -> list[Ids]:
        words = random.permutation(np.concatenate(sequences))
        return list(words[words > 0].reshape(-1, 20))

    observed, truth = encrypted(jumbled(language(20_000, 1)))
    guess = by_context(observed, Corpus.of(jumbled(language(20_000, 2))), SPECIAL)
    assert recovery(observed, guess, truth, SPECIAL).tokens < 0.6


def test_known_pairs_are_kept_and_help_with_the_rest(language: Callable[..., list[Ids]]) -> None:
    observed, truth = encrypted(language(4_000, 1))
    known = Corpus.of(language(4_000, 2))
    some = dict(zip(observed.types[:40].tolist(), truth[:40].tolist(), strict=True))
    with_pairs = by_context(observed, known, {**SPECIAL, **some})
    assert (with_pairs[:40] == truth[:40]).all()
    without = by_context(observed, known, SPECIAL)
    assert (with_pairs[40:] == truth[40:]).sum() > (without[40:] == truth[40:]).sum()


def test_rank_matches_only_as_many_types_as_there_are_on_both_sides(language: Callable[..., list[Ids]]) -> None:
    observed, _ = encrypted(language(4_000, 1))
    guess = by_rank(observed, Corpus.of([np.array([7, 7, 9])]), SPECIAL)
    assert sorted(guess[guess > 0]) == [7, 9]
    assert (guess == NO_GUESS).sum() == len(observed.types) - 3  # two and the special one


def test_special_tokens_do_not_count() -> None:
    observed = Corpus.of([np.array([0, 5, 6, 6, 6])])
    right = recovery(observed, np.where(observed.types == 6, NO_GUESS, observed.types), observed.types, {0})
    assert right.tokens == pytest.approx(0.25)
    assert right.types == pytest.approx(0.5)


def test_plain_rows_are_found_at_once(plain: Rows) -> None:
    rows, truth = mapped(plain, Transform("none"))
    ids = np.arange(SIZE)
    assert (by_nearest_row(rows, plain, ids) == truth).all()


@pytest.mark.parametrize("transform", [Transform("glide", 8), Transform("orthogonal")], ids=["glide", "orthogonal"])
def test_maps_that_keep_distances_are_undone_without_any_text(plain: Rows, transform: Transform) -> None:
    rows, truth = mapped(plain, transform)
    ids = np.arange(SIZE)
    assert (by_nearest_row(rows, plain, ids) == truth).mean() < 0.5
    assert (by_principal_axes(rows, plain, ids) == truth).all()


def test_noise_of_a_tenth_does_not_keep_the_map_from_being_undone(plain: Rows) -> None:
    rows, truth = mapped(plain, Transform("orthogonal"), noise=0.1)
    assert (by_principal_axes(rows, plain, np.arange(SIZE)) == truth).mean() > 0.95


def test_another_models_embeddings_are_not_matched(plain: Rows) -> None:
    random = np.random.default_rng(23)
    other = random.permutation(plain.ravel()).reshape(plain.shape)
    rows, truth = mapped(plain, Transform("orthogonal"))
    assert (by_principal_axes(rows, other, np.arange(SIZE)) == truth).mean() < 0.02


def test_known_pairs_determine_the_map(plain: Rows) -> None:
    rows, truth = mapped(plain, Transform("orthogonal"), noise=0.1)
    pairs = {place: int(truth[place]) for place in range(60)}
    others = np.arange(60, SIZE)
    assert (by_known_pairs(rows, plain, others, pairs) == truth[others]).mean() > 0.95
    assert (by_known_pairs(rows, plain, others, {0: int(truth[0])}) == truth[others]).mean() < 0.5


def test_a_carried_map_is_solved_for_in_the_position_embeddings(
    folder_of: Callable[[str], Path], passkey: PassKey, stretching: Stretching, tmp_path: Path
) -> None:
    target = tmp_path / "carried"
    convert(folder_of("bert"), target, passkey, transform="orthogonal", noise=0.5, kdf=stretching)
    known, seen = (
        load_model(place).embeddings.position_embeddings.weight.detach().double().numpy()
        for place in (folder_of("bert"), target)
    )
    left, _, right = np.linalg.svd((seen - seen.mean(0)).T @ (known - known.mean(0)))
    undone = (table(target) @ left @ right).astype(np.float32)
    client = PasskeyClient(folder_of("bert"), passkey, target)
    ids = np.arange(len(undone))
    assert (by_nearest_row(undone, table(folder_of("bert")), ids) == client.plain_ids(ids)).mean() > 0.95


def test_homophones_hide_how_frequent_a_token_is(language: Callable[..., list[Ids]]) -> None:
    sentences = language(20_000, 1)
    homophones = Homophones(np.bincount(np.concatenate(sentences)), 0.005, [0])
    drawn = homophones.draw(sentences, seed=1)
    shares = np.bincount(np.concatenate(drawn))[1:] / sum(map(len, drawn))
    assert shares.max() < 0.007
    for before, after in zip(sentences, drawn, strict=True):
        assert (homophones.plain[after] == before).all()


def test_passages_are_whole_sentences_of_the_length_asked_for(language: Callable[..., list[Ids]]) -> None:
    sentences = language(4_000, 1)
    found = passages(sentences, 500, 3, [0])
    assert [sum(len(ids) - 1 for ids in passage) for passage in found] == [500, 500, 500]
    assert sum(map(len, passages(sentences, 10**6, 3, [0]))) == len(sentences)


def test_words_are_counted_as_white_space_parts_them() -> None:
    assert first_words(["a b  c", "d e f", "g"], 5) == ["a b c", "d e"]


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text(" \n\n")
    (tmp_path / "latin.txt").write_bytes("äöü".encode("latin-1"))
    for name, message in (("empty.txt", "has no text"), ("latin.txt", "is not UTF-8 at byte 1")):
        with pytest.raises(AttackError, match=message):
            read_lines(tmp_path / name)
    with pytest.raises(DataError, match="can't be read"):
        read_lines(tmp_path / "missing.txt")
    with pytest.raises(AttackError, match="its model can't be read"):
        table(tmp_path)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a passkey and texts."""
    folder = tmp_path_factory.mktemp("attack")
    (folder / "key.txt").write_text(PASSKEY)
    (folder / "key.txt").chmod(0o600)
    (folder / "observed.txt").write_text("\n".join(LINES[:4] * 5))
    (folder / "known.txt").write_text("\n".join(LINES[2:] * 5))
    return folder


def attack(files: Path, original: Path, *arguments: str | Path) -> int:
    """Runs `python -m privacy passkey attack ...` on the texts of `files`; returns its exit status."""
    given = ["--original", original, "--passkey-file", files / "key.txt", *arguments]
    texts = ["--observed", files / "observed.txt", "--known", files / "known.txt"]
    return main(["passkey", "attack", *map(str, given), *map(str, texts)])


def test_the_command_reads_converted_models_and_links_two_keys(
    files: Path,
    folder_of: Callable[[str], Path],
    converted_of: Callable[..., Path],
    passkey: PassKey,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = tmp_path / "other"
    salt = Stretching("scrypt", bytes(16), {"log2_n": 14, "r": 8, "p": 1})
    convert(folder_of("bert"), other, passkey, transform="orthogonal", kdf=salt)
    chart = tmp_path / "chart.png"
    arguments = ["--converted", converted_of("bert"), other, "--words", "50", "200", "--chart", chart]
    assert attack(files, folder_of("bert"), *arguments) == 0
    printed = capsys.readouterr()
    axes = [line for line in printed.out.splitlines() if "principal axes" in line]
    assert all("100.0 / 100.0" in line for line in axes)
    (linked,) = (line for line in printed.out.splitlines() if "linked to" in line)
    assert "100.0 / 100.0" in linked
    assert PASSKEY not in printed.out + printed.err
    assert chart.read_bytes().startswith(b"\x89PNG")


def test_mistakes_are_one_line_and_status_2(
    files: Path,
    folder_of: Callable[[str], Path],
    converted_of: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bert, converted = folder_of("bert"), converted_of("bert")
    wrong = tmp_path / "wrong.txt"
    wrong.write_text("another key of enough letters")
    wrong.chmod(0o600)
    for message, arguments in {
        "the known text has": ["--converted", converted, "--words", "100000"],
        "its suffix is none of": ["--converted", converted, "--chart", "chart.doc"],
        "stands there twice": ["--converted", converted, converted],
        "has no passkey.json": ["--converted", bert, "--words", "50"],
        "passkey is wrong": ["--converted", converted, "--words", "50", "--passkey-file", wrong],
    }.items():
        assert attack(files, bert, *arguments) == 2
        said = capsys.readouterr().err
        assert message in said
        assert len(said.splitlines()) == 1
