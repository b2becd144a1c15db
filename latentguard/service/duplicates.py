"""Recognising variations of a prompt that was blocked: what somebody sends who looks for a wording that passes.

A prompt is taken as the runs of four letters in its normalised text, spaces and punctuation apart, so that a changed
word, padding and tricks with characters leave most of them as they are. How much of a blocked prompt is in another one
is the weight of the runs that both have over the weight of the blocked prompt's; a run that many of the key's prompts
have, such as those of a template, weighs little. Blocked variations count as blocked prompts themselves, so a search
that changes word after word is followed to where it ends.
"""

from __future__ import annotations

import re
from collections import deque

import numpy as np

from latentguard.normalize import normalize

_RUN = 4
_BUCKETS = 2**16
_KEPT_RUNS = 128
_KEPT_PROMPTS = 64
_FREQUENCY_BUCKETS = 2**12
_FADES_AFTER = 2000
_SIMILAR = 0.55
_LIKELY = 0.25
_ENOUGH = 8
_WITHIN_S = 3600.0
_REMEMBERED = 256

_OTHER = re.compile(r"[\W_]+")
_MULTIPLIERS = [np.uint32(each) for each in (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F)]


class BlockedVariants:
    """The last blocked prompts of one key, as sketches of 128 runs each, and how many variations each family has had.

    Memory is bounded to some 40 KiB; a prompt costs some 0.1 ms.
    """

    def __init__(self) -> None:
        self._sketches = np.zeros((_KEPT_PROMPTS, _KEPT_RUNS), dtype=np.uint16)
        self._used = np.zeros((_KEPT_PROMPTS, _KEPT_RUNS), dtype=bool)
        self._families = np.full(_KEPT_PROMPTS, -1, dtype=np.int64)
        self._place = 0
        self._next_family = 0
        self._frequencies = np.zeros(_FREQUENCY_BUCKETS, dtype=np.float32)
        self._prompts = 0.0
        self._variations: deque[tuple[float, int, int]] = deque(maxlen=_REMEMBERED)

    def observe(self, prompt: str, blocked: bool, at: float) -> int:
        """Takes note of a prompt at a time in seconds. Returns how many different variations of the same blocked prompt
        there were within an hour, this one included, if there are enough of them to be a search; otherwise 0."""
        runs = _runs(prompt)
        if not len(runs):
            return 0
        self._count(runs)
        family = self._family(runs)
        if family is None:
            if blocked:
                self._keep(runs, self._next_family)
                self._next_family += 1
            return 0
        digest = hash(runs.tobytes())
        known = {other for _, of, other in self._variations if of == family}
        if digest in known:
            return 0
        self._variations.append((at, family, digest))
        if blocked:
            self._keep(runs, family)
        count = sum(of == family and at - then <= _WITHIN_S for then, of, _ in self._variations)
        return count if count >= _ENOUGH else 0

    def _family(self, runs: np.ndarray) -> int | None:
        """The family of the kept prompt that this one has most of, if it has enough of it."""
        present = np.zeros(_BUCKETS, dtype=bool)
        present[runs] = True
        shared = present[self._sketches] & self._used
        # Weights are worth computing for the few that have a good part in common at all.
        likely = np.flatnonzero(shared.sum(axis=1) > _LIKELY * self._used.sum(axis=1))
        if not len(likely):
            return None
        weights = self._weights(self._sketches[likely]) * self._used[likely]
        parts = (weights * shared[likely]).sum(axis=1) / weights.sum(axis=1)
        best = int(parts.argmax())
        return int(self._families[likely[best]]) if parts[best] >= _SIMILAR else None

    def _weights(self, runs: np.ndarray) -> np.ndarray:
        """The square of the inverse document frequency, as logarithm, among this key's prompts."""
        frequency = self._frequencies[runs % _FREQUENCY_BUCKETS]
        weights: np.ndarray = np.log(1 + self._prompts / (1 + frequency)) ** 2
        return weights

    def _count(self, runs: np.ndarray) -> None:
        seen = np.zeros(_FREQUENCY_BUCKETS, dtype=bool)
        seen[runs % _FREQUENCY_BUCKETS] = True
        self._frequencies += seen
        self._prompts += 1
        if self._prompts > _FADES_AFTER:
            self._frequencies /= 2
            self._prompts /= 2

    def _keep(self, runs: np.ndarray, family: int) -> None:
        kept = runs if len(runs) <= _KEPT_RUNS else runs[np.argsort(_scattered(runs))[:_KEPT_RUNS]]
        self._sketches[self._place, : len(kept)] = kept
        self._used[self._place] = np.arange(_KEPT_RUNS) < len(kept)
        self._families[self._place] = family
        self._place = (self._place + 1) % _KEPT_PROMPTS


def _runs(prompt: str) -> np.ndarray:
    """The different runs of letters, as sorted hashes of 16 bits; of a shorter text the whole as one."""
    letters = _OTHER.sub("", normalize(prompt).casefold())
    codes = np.frombuffer(letters.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    if not len(codes):
        return np.zeros(0, dtype=np.uint16)
    codes = np.pad(codes, (0, max(0, _RUN - len(codes))))
    count = len(codes) - _RUN + 1
    hashes = np.zeros(count, dtype=np.uint32)
    for i, multiplier in enumerate(_MULTIPLIERS):
        hashes += codes[i : i + count] * multiplier
    seen = np.zeros(_BUCKETS, dtype=bool)
    seen[_scattered(hashes) % _BUCKETS] = True
    return np.flatnonzero(seen).astype(np.uint16)


def _scattered(values: np.ndarray) -> np.ndarray:
    """A permutation of 32-bit numbers whose low bits depend on all bits (the end of MurmurHash3)."""
    h = values.astype(np.uint32)
    h ^= h >> np.uint32(16)
    h *= np.uint32(0x85EBCA6B)
    h ^= h >> np.uint32(13)
    h *= np.uint32(0xC2B2AE35)
    h ^= h >> np.uint32(16)
    return h
