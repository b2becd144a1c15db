"""Who sent too many wrong API keys, and has to wait."""

from __future__ import annotations

import ipaddress
import math
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from latentguard.errors import ServiceError

_MAX_ENTRIES = 20_000
# One client with an outdated secret shouldn't lock out its neighbours behind the same address.
_ADDRESS_FACTOR = 4


class LockedOutError(ServiceError):
    """Too many wrong API keys. `retry_after` is in whole seconds, at least 1."""

    def __init__(self, retry_after: float) -> None:
        self.retry_after = max(1, math.ceil(retry_after))
        super().__init__(f"too many failed attempts; try again in {self.retry_after} s")


@dataclass
class _Failures:
    count: int
    last: float
    locked_until: float = -math.inf


class Lockouts:
    """Counts wrong secrets: for an id from an address, and from an address for any id; thread-safe, of this process.

    A key is never locked for all addresses, or else anybody who knows its id could lock its owner out. Addresses of
    IPv6 count by their first 64 bits, which one subscriber has.

    Args:
        failures: of one id from one address, after which that pair is locked; an address after four times as many.
        seconds: how long it is locked, and after how long without a failure the count begins anew.
        ticks: seconds that never go back.
    """

    def __init__(self, failures: int, seconds: float, ticks: Callable[[], float]) -> None:
        self._limit, self._seconds, self._ticks = failures, seconds, ticks
        self._entries: OrderedDict[tuple[str, str | None], _Failures] = OrderedDict()
        self._lock = threading.Lock()

    def check(self, address: str, key_id: str | None) -> None:
        """Raises LockedOutError if a token for `key_id`, None for no id at all, from `address` isn't looked at."""
        with self._lock:
            now = self._ticks()
            entries = [self._entries.get(place) for place in _places(address, key_id)]
            wait = max((entry.locked_until - now for entry in entries if entry is not None), default=0.0)
        if wait > 0:
            raise LockedOutError(wait)

    def failed(self, address: str, key_id: str | None) -> None:
        """Counts a failure."""
        with self._lock:
            now = self._ticks()
            for place in _places(address, key_id):
                entry = self._entries.pop(place, None)
                if entry is None or now - entry.last > self._seconds:
                    entry = _Failures(0, now)
                entry.count, entry.last = entry.count + 1, now
                limit = self._limit * (_ADDRESS_FACTOR if place[1] is None else 1)
                if entry.count >= limit:
                    entry.count, entry.locked_until = 0, now + self._seconds
                self._entries[place] = entry
            while len(self._entries) > _MAX_ENTRIES:
                self._entries.popitem(last=False)

    def succeeded(self, address: str, key_id: str) -> None:
        """Forgets this id's failures from this address; not the address's, which a guesser's own key would clear."""
        with self._lock:
            self._entries.pop((_network(address), key_id), None)


def _places(address: str, key_id: str | None) -> list[tuple[str, str | None]]:
    network = _network(address)
    return [(network, None)] if key_id is None else [(network, None), (network, key_id)]


def _network(address: str) -> str:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:  # a name, or a socket's path: one place like any other
        return address
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)
