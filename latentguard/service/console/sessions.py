"""Sign-in sessions of the console: held in memory, known to the browser by a random cookie alone."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from latentguard.service.access import ApiKey, Scope

IDLE_S = 30 * 60
"""A session ends when nobody has used it for this long."""

ABSOLUTE_S = 12 * 60 * 60
"""A session ends this long after signing in, however busy."""

_MOST_SESSIONS = 1000


@dataclass
class Session:
    """One signed-in browser.

    Attributes:
        key: the API key that signed in, as it was when last looked up.
        secret: a digest that changes when the key gets another secret, which ends the session.
        token: the cookie's value, which the session's form tokens are made from.
        opened, used: when it was opened and last used, on the clock of :class:`Sessions`, in seconds.
        notes: what the next page tells once, as keyword arguments of the template's notice.
        undo: what takes back the last change of the bank or the threshold, None where nothing does.
    """

    key: ApiKey
    secret: bytes = field(repr=False)
    token: str = field(repr=False)
    opened: float
    used: float
    notes: list[dict[str, Any]] = field(default_factory=list, repr=False)
    undo: Any = None

    @property
    def admin(self) -> bool:
        """Whether every page is open to it, or only trying a prompt."""
        return Scope.admin in self.key.scopes

    def take_notes(self) -> list[dict[str, Any]]:
        """The notes to show now; they are gone after that."""
        notes, self.notes = self.notes, []
        return notes


class Sessions:
    """The open sessions: at most a thousand, the longest unused going first. A restart signs everybody out."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._open: OrderedDict[bytes, Session] = OrderedDict()
        self._form_key = secrets.token_bytes(32)

    def open(self, key: ApiKey, secret: bytes) -> Session:
        """A new session with a token of its own; see :class:`Session`."""
        now = self._clock()
        session = Session(key, secret, secrets.token_urlsafe(32), now, now)
        with self._lock:
            self._open[_place(session.token)] = session
            while len(self._open) > _MOST_SESSIONS:
                self._open.popitem(last=False)
        return session

    def find(self, token: str, *, use: bool = True) -> Session | None:
        """The open session of a token, or None. ``use=False`` looks without keeping it from falling idle."""
        now = self._clock()
        with self._lock:
            session = self._open.get(_place(token))
            if session is None:
                return None
            if now - session.used > IDLE_S or now - session.opened > ABSOLUTE_S:
                del self._open[_place(token)]
                return None
            if use:
                session.used = now
                self._open.move_to_end(_place(token))
            return session

    def close(self, token: str) -> None:
        """End the session of a token, if there is one."""
        with self._lock:
            self._open.pop(_place(token), None)

    def form_token(self, cookie: str) -> str:
        """What a form must carry to be taken from the browser that holds this cookie."""
        return hmac.new(self._form_key, cookie.encode(), hashlib.sha256).hexdigest()

    def is_form_token(self, cookie: str, token: str) -> bool:
        """Whether a form's token belongs to this cookie."""
        return hmac.compare_digest(self.form_token(cookie).encode(), token.encode())


def _place(token: str) -> bytes:
    # By digest, so that how long a look-up takes tells nothing of the tokens that are there.
    return hashlib.sha256(token.encode()).digest()
