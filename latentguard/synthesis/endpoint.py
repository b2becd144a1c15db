"""A language model behind any endpoint that speaks the OpenAI chat protocol."""

from __future__ import annotations

import email.utils
import ipaddress
import json
import os
import random
import re
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from latentguard.errors import MissingDependencyError

from .backends import Answer, BackendError
from .instructions import Message
from .tally import Tally

API_KEY_VARIABLE = "LATENTGUARD_SYNTHESIS_API_KEY"
BASE_URL_VARIABLE = "LATENTGUARD_SYNTHESIS_BASE_URL"
MODEL_VARIABLE = "LATENTGUARD_SYNTHESIS_MODEL"

_TRIED_AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
_MOST_BYTES = 4 * 2**20
_FILTERS = frozenset({"content_filter", "content_policy_violation", "moderation_blocked"})


@dataclass(frozen=True)
class EndpointSettings:
    """Where the model is and how it is asked.

    base_url: up to and without `/chat/completions`. api_key: sent as a bearer token, and shown nowhere. timeout:
    seconds for one answer. attempts: how often a request is sent at most. first_delay, longest_delay: seconds before
    the second attempt, doubled for each further one up to the longest, which also bounds what the server may ask for.
    """

    base_url: str
    model: str
    api_key: str | None = field(default=None, repr=False)
    parallel: int = 4
    timeout: float = 120.0
    attempts: int = 6
    first_delay: float = 1.0
    longest_delay: float = 120.0
    temperature: float = 0.9

    @classmethod
    def from_environment(
        cls, base_url: str | None, model: str | None, environment: Mapping[str, str] = os.environ, **options: Any
    ) -> EndpointSettings:
        """Settings with what is not given taken from the environment. Raises BackendError if something is missing."""
        found_url = base_url or environment.get(BASE_URL_VARIABLE)
        found_model = model or environment.get(MODEL_VARIABLE)
        if not found_url:
            raise BackendError(f"no endpoint: give --base-url or set {BASE_URL_VARIABLE}")
        if not found_model:
            raise BackendError(f"no model: give --model or set {MODEL_VARIABLE}")
        return cls(found_url, found_model, environment.get(API_KEY_VARIABLE) or None, **options)

    def __post_init__(self) -> None:
        parts = urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise BackendError("the endpoint's base URL is not an http or https address")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise BackendError(f"the endpoint's base URL must hold no key, query or fragment; set {API_KEY_VARIABLE}")
        if self.api_key and parts.scheme == "http" and not _is_local(parts.hostname):
            raise BackendError("the API key is not sent over plain http to another machine; use https")
        if self.api_key and not (self.api_key.isascii() and self.api_key.isprintable() and " " not in self.api_key):
            raise BackendError(f"{API_KEY_VARIABLE} holds characters that no key has")
        if self.parallel < 1 or self.attempts < 1:
            raise BackendError("the endpoint's parallel requests and attempts must be at least 1")


class Endpoint:
    """Sends dialogues to `BASE_URL/chat/completions`; safe to use from several threads.

    Too many requests, a server's own failures, broken connections and timeouts are tried again after a delay that
    doubles, with jitter, or after what the server's Retry-After says. Raises MissingDependencyError without `requests`.
    """

    backend = "openai"

    def __init__(self, settings: EndpointSettings) -> None:
        try:
            import requests
        except ImportError as error:
            raise MissingDependencyError(
                "the openai back end needs requests; install it with: pip install 'latentguard[synthesis]'"
            ) from error
        self._requests = requests
        self._settings = settings
        self.name = settings.model
        self.parallel = settings.parallel
        self._url = settings.base_url.rstrip("/") + "/chat/completions"
        self._host = urlsplit(settings.base_url).hostname
        self._closed = threading.Event()
        self._sessions = threading.local()
        self._slots = threading.BoundedSemaphore(settings.parallel)

    def answer(self, messages: Sequence[Message], seed: int, tally: Tally) -> Answer:
        body = {
            "model": self._settings.model,
            "messages": list(messages),
            "temperature": self._settings.temperature,
            "seed": seed,
        }
        reason = ""
        for attempt in range(self._settings.attempts):
            if attempt:
                tally.retries += 1
            if self._closed.is_set():
                raise BackendError(f"{self._host}: given up")
            with self._slots:
                outcome = self._send(body)
            if isinstance(outcome, Answer):
                return outcome
            reason = outcome.reason
            if attempt + 1 < self._settings.attempts:
                self._closed.wait(self._delay(attempt, outcome.retry_after))
        raise BackendError(f"{self._host}: no answer after {self._settings.attempts} attempts: {reason}")

    def close(self) -> None:
        self._closed.set()

    def _send(self, body: dict[str, Any]) -> Answer | _Failure:
        """One attempt: an answer, or a failure that may pass. Raises BackendError for one that won't."""
        started = time.monotonic()
        try:
            with self._session().post(
                self._url,
                json=body,
                timeout=self._settings.timeout,
                allow_redirects=False,
                stream=True,
            ) as response:
                content = self._content(response, started)
                status, headers = response.status_code, response.headers
        except self._requests.exceptions.Timeout:
            return _Failure(f"it took longer than {self._settings.timeout:g} s")
        except (
            self._requests.exceptions.ConnectionError,
            self._requests.exceptions.ChunkedEncodingError,
            self._requests.exceptions.ContentDecodingError,
        ):
            return _Failure("the connection failed")
        except self._requests.exceptions.RequestException as error:
            raise BackendError(f"{self._host}: can't be asked ({type(error).__name__})") from None
        if content is None:
            return _Failure(f"the answer took longer than {self._settings.timeout:g} s, or was too long")
        if status == 200:
            return _answer_in(content)
        if _error_code(content) in _FILTERS:
            return Answer("", refused=True)
        if status in _TRIED_AGAIN or status >= 500:
            return _Failure(f"status {status}", _retry_after(headers.get("Retry-After")))
        raise BackendError(f"{self._host}: the request was not accepted: {_status(status, content)}")

    def _content(self, response: Any, started: float) -> bytes | None:
        """The body; None if it is larger, or comes more slowly, than an answer may."""
        content = b""
        for chunk in response.iter_content(16384):
            content += chunk
            if len(content) > _MOST_BYTES or time.monotonic() - started > self._settings.timeout:
                return None
        return content

    def _session(self) -> Any:
        """A session for each thread, since `requests` doesn't promise to share one."""
        session = getattr(self._sessions, "session", None)
        if session is None:
            session = self._sessions.session = self._requests.Session()
            # Set as `auth`, or the user's .netrc would take the header's place.
            session.auth = self._authorize
        return session

    def _authorize(self, request: Any) -> Any:
        if self._settings.api_key:
            request.headers["Authorization"] = f"Bearer {self._settings.api_key}"
        return request

    def _delay(self, attempt: int, retry_after: float | None) -> float:
        longest = self._settings.longest_delay
        backoff = min(self._settings.first_delay * 2.0**attempt, longest) * random.uniform(0.5, 1.0)
        return backoff if retry_after is None else min(max(retry_after, 0.0), longest) + backoff * 0.1


@dataclass(frozen=True)
class _Failure:
    """An attempt that came to nothing and may be made again."""

    reason: str
    retry_after: float | None = None


def _answer_in(content: bytes) -> Answer:
    """What the body of a successful response says; an empty answer, which counts as malformed, if it says nothing."""
    try:
        choice = json.loads(content)["choices"][0]
        message = choice["message"]
        text = message.get("content")
        refused = bool(message.get("refusal")) or choice.get("finish_reason") == "content_filter"
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return Answer("")
    return Answer(text if isinstance(text, str) else "", refused)


def _error_code(content: bytes) -> str | None:
    """The code of an error's body, if it is a plain word: a server may repeat anything in the rest, the key too."""
    try:
        error = json.loads(content)["error"]
        codes = [error.get(name) for name in ("code", "type")]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    return next((code for code in codes if isinstance(code, str) and re.fullmatch(r"[a-z_]{1,40}", code)), None)


def _status(status: int, content: bytes) -> str:
    code = _error_code(content)
    advice = {401: f"; is {API_KEY_VARIABLE} set and right?", 404: "; are the base URL and the model right?"}
    return f"status {status}" + (f", {code}" if code else "") + advice.get(status, "")


def _retry_after(value: str | None) -> float | None:
    """The seconds that a Retry-After header asks for, given as a number or as a date."""
    if value is None:
        return None
    if re.fullmatch(r"\d{1,9}(?:\.\d{1,9})?", value.strip()):
        return float(value)
    try:
        return email.utils.parsedate_to_datetime(value).timestamp() - time.time()
    except (ValueError, TypeError, OverflowError):
        return None


def _is_local(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
