"""The server: it holds the model and clients' evaluation keys, never a secret key, and classifies what it can't see."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from privacy.encrypted_inference.weights import load_architecture
from privacy.encrypted_inference.wire import (
    Answer,
    Failure,
    Keys,
    Query,
    decode,
    encode,
    fingerprint,
    shape_fingerprint,
)
from privacy.encrypted_inference.worker import Worker
from privacy.errors import (
    CapacityError,
    ImageSizeError,
    InferenceError,
    ModelError,
    SessionExpiredError,
    WorkerError,
)


@dataclass
class Session:
    """A client's evaluation keys on the server, until ``expires`` (by the server's own clock, in seconds)."""

    fingerprint: bytes
    keys: Keys
    expires: float
    loaded_in: int = 0  # which start of the worker has read the keys


class Server:
    """Classifies encrypted images.

    >>> with Server({"mnist": shipped_folder("mnist")}) as server:
    ...     session = server.register(keys_message)  # once per client
    ...     answer_message = server.classify(query_message)

    A session ends ``session_seconds`` after its last use. What clients send is framed and typed here (`wire`) and read
    by SEAL in a worker process only, which is started anew when it dies.
    """

    def __init__(
        self,
        models: Mapping[str, Path],
        session_seconds: float = 3600.0,
        max_sessions: int = 32,
        worker: Worker | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Raises ModelError if one of the models isn't there or is damaged."""
        self._architectures = {name: load_architecture(folder) for name, folder in models.items()}
        self._shapes = {name: shape_fingerprint(shape) for name, shape in self._architectures.items()}
        self._worker = worker or Worker(models)
        self._session_seconds = session_seconds
        self._max_sessions = max_sessions
        self._clock = clock
        self._sessions: dict[bytes, Session] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the worker and forgets all sessions."""
        self._sessions.clear()
        self._worker.close()

    def register(self, message: bytes) -> Session:
        """Takes a client's keys; the same keys again cost nothing and begin the session's time anew.

        Raises:
            WireError, ContextError, CiphertextError: the keys can't be used.
            CapacityError: there are too many sessions.
            WorkerError: reading them ended the worker.
        """
        name = fingerprint(message)
        with self._lock:
            self._drop_expired()
            known = self._sessions.get(name)
            if known is not None:
                known.expires = self._clock() + self._session_seconds
                return known
            keys = decode(message, Keys)
            if len(self._sessions) >= self._max_sessions:
                raise CapacityError(f"server: has {self._max_sessions} sessions, which is all it holds")
            session = Session(name, keys, self._clock() + self._session_seconds)
            self._load(session)
            self._sessions[name] = session
            return session

    def classify(self, message: bytes) -> bytes:
        """The answer's message to a query's.

        Raises:
            WireError, CiphertextError, DepthError, ImageSizeError, ModelError: the query can't be used.
            SessionExpiredError: the keys aren't here, or no longer.
            KeyMismatchError: the keys lack what the model needs.
            WorkerError: evaluating it ended the worker.
        """
        query = self._query(message)
        with self._lock:
            self._drop_expired()
            session = self._sessions.get(query.fingerprint)
            if session is None:
                raise SessionExpiredError("query: no session has its keys; they were never sent, or it is over")
            session.expires = self._clock() + self._session_seconds
            self._load(session)
            reply = self._worker.request(
                "classify",
                fingerprint=query.fingerprint,
                model=query.model,
                layout=query.layout,
                count=query.count,
                ciphertexts=query.ciphertexts,
            )
        ciphertexts = tuple(reply["ciphertexts"])
        return encode(Answer(query.fingerprint, query.model, query.layout, query.count, ciphertexts))

    def check(self, message: bytes) -> None:
        """Reads a query as `classify` does and evaluates nothing, for those who queue queries.

        Raises:
            InferenceError: as `classify`, but that no session is looked for.
        """
        query = self._query(message)
        with self._lock:
            self._worker.request("check", layout=query.layout, ciphertexts=query.ciphertexts)

    def handle(self, message: bytes) -> bytes:
        """The message to send back for a query, which may be a `Failure`; raises nothing that a client can cause."""
        try:
            return self.classify(message)
        except InferenceError as error:
            return encode(Failure.of(error))

    def _query(self, message: bytes) -> Query:
        query = decode(message, Query)
        shape = self._shapes.get(query.model)
        if shape is None:
            raise ModelError(f"query: the model {query.model!r} isn't served here")
        if shape != query.shape:
            side = self._architectures[query.model].side
            raise ImageSizeError(f"query: laid out for another shape than {query.model}'s, of {side} pixels square")
        return query

    def _load(self, session: Session) -> None:
        """Has the worker read the session's keys, unless this very process has."""
        if session.loaded_in and session.loaded_in == self._worker.starts and self._worker.pid is not None:
            return
        self._worker.request(
            "keys", fingerprint=session.fingerprint, relin=session.keys.relin, rotations=session.keys.rotations
        )
        session.loaded_in = self._worker.starts

    def _drop_expired(self) -> None:
        now = self._clock()
        for name in [name for name, session in self._sessions.items() if session.expires <= now]:
            session = self._sessions.pop(name)
            if session.loaded_in == self._worker.starts and self._worker.pid is not None:
                try:
                    self._worker.request("forget", fingerprint=name)
                except WorkerError:  # then it has forgotten everything
                    continue
