"""Runs the attacks against converted folders, and scores with the key what each found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from privacy.errors import AttackError
from privacy.passkey.attacks.corpus import Corpus, Ids, first_words
from privacy.passkey.attacks.defences import Homophones, passages, shuffled
from privacy.passkey.attacks.embedding import Rows, by_known_pairs, by_nearest_row, by_principal_axes, table
from privacy.passkey.attacks.frequency import NO_GUESS, by_context, by_rank
from privacy.passkey.attacks.scoring import Outcome, Recovery, mean, recovery
from privacy.passkey.client import PasskeyClient
from privacy.passkey.keys import PassKey
from privacy.passkey.record import read_record
from privacy.passkey.tokenizer_files import load_tokenizer

_WORDS_PER_KEY = (10_000, 1_000)
_KEYS_TRIED = 3
_HOMOPHONE_SHARE = 1e-3


@dataclass(frozen=True)
class Texts:
    """Plain ids of each line, as the tokenizer gives them. known: the beginnings of the known text, by their words."""

    observed: list[Ids]
    known: Mapping[int, list[Ids]]

    @classmethod
    def of(cls, original: str | Path, observed: Sequence[str], known: Sequence[str], words: Sequence[int]) -> Texts:
        """Tokenizes `observed`, and so many `words` of `known` as the attacker shall have.

        Raises:
            AttackError: the known text has fewer words.
            ConversionError: the tokenizer of folder `original` can't be read.
        """
        tokenizer = load_tokenizer(original)
        there = sum(len(line.split()) for line in known)
        if max(words) > there:
            raise AttackError(f"the known text has {there:,} words, not {max(words):,}")
        return cls(_ids(tokenizer, observed), {each: _ids(tokenizer, first_words(known, each)) for each in words})


class Operator:
    """What a server's operator has: a converted folder's embeddings [V, D], and a text's encrypted ids.

    special: ids that stayed. `truth` [T] and `pairs` need the key; attacks are given neither but known pairs.
    """

    def __init__(self, client: PasskeyClient, folder: Path, observed: Sequence[Ids]) -> None:
        self.name = folder_name(folder)
        self.special = client.record.special
        self.rows: Rows = table(folder)
        self.observed = Corpus.of([client.encrypted_ids(each) for each in observed])
        self.truth: Ids = client.plain_ids(self.observed.types)
        self._client = client

    def pairs(self, known: Corpus) -> dict[int, int]:
        """The encrypted id of each type of a known text, to the plain one."""
        return dict(zip(self._client.encrypted_ids(known.types).tolist(), known.types.tolist(), strict=True))

    def scored(self, guess: Ids) -> Recovery:
        """How much of the observed text is read with guesses [T] for its types."""
        return recovery(self.observed, guess, self.truth, self.special)


def run(original: str | Path, converted: Sequence[Path], passkey: PassKey, texts: Texts) -> list[Outcome]:
    """All attacks: on the ids of the first folder of `converted`, on each's embeddings, on first and last together.

    Raises:
        AttackError: a model can't be read, or its embeddings aren't of the original's shape.
        PasskeyError: a folder is no whole conversion, of another model or of another key.
    """
    clients = [PasskeyClient(original, passkey, folder) for folder in converted]
    operators = [Operator(client, folder, texts.observed) for client, folder in zip(clients, converted, strict=True)]
    plain = table(original)
    for operator, folder in zip(operators, converted, strict=True):
        if operator.rows.shape != plain.shape:
            raise AttackError(f"{folder}: its embeddings are not of the shape of those of {original}")
    known = {words: Corpus.of(sequences) for words, sequences in texts.known.items()}
    outcomes = list(_on_ids(operators[0], known))
    for operator in tqdm(operators, desc="embeddings", disable=None, leave=False):
        outcomes += _on_rows(operator, plain, known)
    if len(operators) > 1:
        outcomes.append(_linked(operators[0], operators[-1], clients[-1]))
    return [*outcomes, *_several_keys(texts, known, operators[0]), _homophones(texts, operators[0])]


def folder_name(folder: Path) -> str:
    """A converted folder's name with its transform. Raises ConversionError if it is no whole conversion."""
    transform = read_record(folder).transform
    factor = f" x {transform.factor}" if transform.factor > 1 else ""
    carried = "" if transform.carried or transform.kind == "none" else ", not carried"
    noise = f", noise {transform.noise:g}" if transform.noise else ""
    described = f"{transform.kind}{factor}{carried}{noise}"
    return described if folder.resolve().name == described else f"{folder.resolve().name} ({described})"


def _on_ids(operator: Operator, known: Mapping[int, Corpus]) -> Iterator[Outcome]:
    group, observed = "encrypted ids", operator.observed
    special = {each: each for each in operator.special}
    ranked, in_context, looked_up, completed = {}, {}, {}, {}
    for words, corpus in tqdm(known.items(), desc="frequencies", disable=None, leave=False):
        pairs = operator.pairs(corpus)
        ranked[words] = operator.scored(by_rank(observed, corpus, special))
        in_context[words] = operator.scored(by_context(observed, corpus, special))
        looked_up[words] = operator.scored(np.array([pairs.get(each, NO_GUESS) for each in observed.types.tolist()]))
        completed[words] = operator.scored(by_context(observed, known[max(known)], pairs))
    yield Outcome(group, "frequency rank", ranked)
    yield Outcome(group, "frequency and context", in_context)
    yield Outcome(group, "known pairs", looked_up)
    yield Outcome(group, f"known pairs, and context of {max(known):,}", completed)


def _on_rows(operator: Operator, plain: Rows, known: Mapping[int, Corpus]) -> Iterator[Outcome]:
    group, rows, ids = f"embeddings, {operator.name}", operator.rows, operator.observed.types
    yield Outcome(group, "nearest row", {0: operator.scored(by_nearest_row(rows, plain, ids))})
    yield Outcome(group, "principal axes", {0: operator.scored(by_principal_axes(rows, plain, ids))})
    fitted = {
        words: operator.scored(by_known_pairs(rows, plain, ids, operator.pairs(corpus)))
        for words, corpus in known.items()
    }
    yield Outcome(group, "fitted to known pairs", fitted)


def _linked(first: Operator, second: Operator, client: PasskeyClient) -> Outcome:
    """How many ids of two conversions of one model are told to be the same token, without the original."""
    guess = by_principal_axes(first.rows, second.rows, first.observed.types)
    linked = recovery(first.observed, guess, client.encrypted_ids(first.truth), first.special)
    return Outcome("embeddings of two keys", f"{first.name} linked to {second.name}", {0: linked})


def _several_keys(texts: Texts, known: Mapping[int, Corpus], operator: Operator) -> Iterator[Outcome]:
    """Frequency analysis of passages with a key each; simulated, with chance in place of keys."""
    special = {each: each for each in operator.special}
    size = len(operator.rows)
    for length in _WORDS_PER_KEY:
        found = {}
        parts = passages(texts.observed, length, _KEYS_TRIED, operator.special)
        for words, corpus in tqdm(known.items(), desc="several keys", disable=None, leave=False):
            each = []
            for seed, part in enumerate(parts):
                new = shuffled(size, operator.special, seed)
                observed = Corpus.of([new[ids] for ids in part])
                plain = np.argsort(new)[observed.types]
                guesses = (attack(observed, corpus, special) for attack in (by_rank, by_context))
                each.append(_better(recovery(observed, guess, plain, special) for guess in guesses))
            found[words] = mean(each)
        yield Outcome("encrypted ids, simulated", f"a key for each {length:,} tokens", found)


def _homophones(texts: Texts, operator: Operator) -> Outcome:
    """Frequency analysis where frequent tokens have several ids; the attacker does the same to the known text."""
    special = {each: each for each in operator.special}
    largest = np.concatenate(texts.known[max(texts.known)])
    homophones = Homophones(np.bincount(largest, minlength=len(operator.rows)), _HOMOPHONE_SHARE, operator.special)
    new = shuffled(len(homophones.plain), operator.special, seed=0)
    observed = Corpus.of([new[ids] for ids in homophones.draw(texts.observed, seed=1)])
    truth = homophones.plain[np.argsort(new)[observed.types]]
    found = {}
    for words, sequences in tqdm(texts.known.items(), desc="homophones", disable=None, leave=False):
        corpus = Corpus.of(homophones.draw(sequences, seed=2))
        guesses = (attack(observed, corpus, special) for attack in (by_rank, by_context))
        plain = (np.where(guess == NO_GUESS, NO_GUESS, homophones.plain[guess]) for guess in guesses)
        found[words] = _better(recovery(observed, each, truth, special) for each in plain)
    return Outcome("encrypted ids, simulated", f"homophones, no id above {_HOMOPHONE_SHARE:.1%}", found)


def _better(recoveries: Iterator[Recovery]) -> Recovery:
    return max(recoveries, key=lambda each: each.tokens)


def _ids(tokenizer: Any, lines: Sequence[str]) -> list[Ids]:
    encoded = tokenizer(list(lines), truncation=False, verbose=False)["input_ids"]
    return [np.array(each, np.int64) for each in encoded]
