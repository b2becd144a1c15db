"""A language model behind any endpoint that speaks the OpenAI chat protocol, as a source of records and paraphrases."""

from __future__ import annotations

import email.utils
import ipaddress
import json
import os
import random
import re
import time
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
from tqdm import tqdm

from privacy.errors import DataError, EndpointError, MemorizationError
from privacy.memorization.journal import Journal
from privacy.memorization.records import (
    FIRST_CAPTURE,
    GENDERS,
    LAST_CAPTURE,
    OLDEST,
    YOUNGEST,
    PrivateRecord,
    user_ids,
)

API_KEY_VARIABLE = "PRIVACY_ENDPOINT_API_KEY"

_TRIED_AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
_MOST_BYTES = 4 * 2**20
_RECORDS_AT_ONCE = 20
_AT_ONCE = 4
_ANSWERS_WITHOUT_RECORDS = 8
_EXAMPLES_TO_AVOID = 60


@dataclass(frozen=True)
class Endpoint:
    """Sends instructions to `BASE_URL/chat/completions`, and asks for answers of a JSON schema; for several threads.

    base_url: up to and without `/chat/completions`. api_key: sent as a bearer token, and shown nowhere. timeout:
    seconds for one answer. attempts: how often a request is sent at most. first_delay, longest_delay: seconds before
    the second attempt, doubled for each further one up to the longest, which also bounds what Retry-After may ask for.

    Raises:
        EndpointError: the address is none, or the key would leave the machine unencrypted.
    """

    base_url: str
    model: str
    api_key: str | None = field(default=None, repr=False)
    timeout: float = 120.0
    attempts: int = 6
    first_delay: float = 1.0
    longest_delay: float = 60.0

    @staticmethod
    def from_environment(base_url: str, model: str) -> Endpoint:
        """The endpoint with the key that the environment's PRIVACY_ENDPOINT_API_KEY holds, if any."""
        return Endpoint(base_url, model, os.environ.get(API_KEY_VARIABLE) or None)

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.base_url)
            host = parts.hostname
        except ValueError:
            raise EndpointError("the endpoint is not an http or https address") from None
        if parts.scheme not in ("http", "https") or not host:
            raise EndpointError("the endpoint is not an http or https address")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise EndpointError(f"the endpoint's address must hold no key, query or fragment: set {API_KEY_VARIABLE}")
        if self.api_key and parts.scheme == "http" and not _is_local(host):
            raise EndpointError("the API key is not sent over plain http to another machine: take https")
        if self.api_key and not (self.api_key.isascii() and self.api_key.isprintable() and " " not in self.api_key):
            raise EndpointError(f"{API_KEY_VARIABLE} holds characters that no key has")

    def ask(self, instruction: str, text: str, schema: Mapping[str, Any], *, seed: int, temperature: float) -> Any:
        """The model's answer, parsed but not validated; None if it isn't JSON, or the model refused.

        schema: the JSON schema that is asked for. Endpoints differ in how far they keep to it, so check the answer.
        Too many requests, a server's own failures, broken connections and timeouts are tried again after a delay that
        doubles, with jitter, or after what the server's Retry-After says.

        Raises:
            EndpointError: the endpoint didn't accept the request, or gave no answer after all attempts.
        """
        body = {
            "model": self.model,
            "messages": [{"role": "system", "content": instruction}, {"role": "user", "content": text}],
            "temperature": temperature,
            "seed": seed,
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "answer", "strict": True, "schema": schema},
            },
        }
        reason = ""
        for attempt in range(self.attempts):
            outcome = self._send(body)
            if not isinstance(outcome, _Failure):
                return outcome
            reason = outcome.reason
            if attempt + 1 < self.attempts:
                time.sleep(self._delay(attempt, outcome.retry_after))
        raise EndpointError(f"{self._host}: no answer after {self.attempts} attempts: {reason}")

    @property
    def _host(self) -> str:
        return urlsplit(self.base_url).hostname or ""

    def _send(self, body: Mapping[str, Any]) -> Any:
        """One attempt: an answer, or a _Failure that may pass. Raises EndpointError for one that won't."""
        started = time.monotonic()
        try:
            with requests.post(
                self.base_url.rstrip("/") + "/chat/completions",
                json=body,
                auth=self._authorize,  # not as a header, whose place the user's .netrc would take
                timeout=self.timeout,
                allow_redirects=False,  # which might carry the key elsewhere
                stream=True,
            ) as response:
                content = self._content(response, started)
                status, retry_after = response.status_code, response.headers.get("Retry-After")
        except requests.Timeout:
            return _Failure(f"it took longer than {self.timeout:g} s")
        except (
            requests.ConnectionError,
            requests.exceptions.ChunkedEncodingError,
            requests.exceptions.ContentDecodingError,
        ):
            return _Failure("the connection failed")
        except requests.RequestException as error:
            raise EndpointError(f"{self._host}: can't be asked ({type(error).__name__})") from None
        if content is None:
            return _Failure(f"the answer took longer than {self.timeout:g} s, or was too long")
        if status == 200:
            return _answer_in(content)
        if status in _TRIED_AGAIN or status >= 500:
            return _Failure(f"status {status}", _seconds(retry_after))
        advice = {
            400: "; does it take a response_format of json_schema?",
            401: f"; is {API_KEY_VARIABLE} set and right?",
            404: "; are its address and the model right?",
        }
        raise EndpointError(f"{self._host}: the request was not accepted: status {status}{advice.get(status, '')}")

    def _authorize(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self.api_key:
            request.headers["Authorization"] = f"Bearer {self.api_key}"
        return request

    def _content(self, response: requests.Response, started: float) -> bytes | None:
        """The body; None if it is larger, or comes more slowly, than an answer may."""
        content = b""
        for chunk in response.iter_content(16384):
            content += chunk
            if len(content) > _MOST_BYTES or time.monotonic() - started > self.timeout:
                return None
        return content

    def _delay(self, attempt: int, retry_after: float | None) -> float:
        backoff = min(self.first_delay * 2.0**attempt, self.longest_delay) * random.uniform(0.5, 1.0)
        return backoff if retry_after is None else min(max(retry_after, 0.0), self.longest_delay) + backoff * 0.1


@dataclass(frozen=True)
class _Failure:
    """An attempt that came to nothing and may be made again."""

    reason: str
    retry_after: float | None = None


def generate_with(endpoint: Endpoint, count: int, *, seed: int, locale: str, journal: Path) -> list[PrivateRecord]:
    """`count` records of a language model; never two with the same user name or id.

    The model makes up everything but the user ids: those of a model aren't uniform, and their exposure would tell of
    the model that made them up. What it repeats, or gets wrong, is asked for again. `journal` is a file that keeps the
    records so far, for the next call if this one is interrupted; the caller removes it once they are safe.

    Raises:
        EndpointError: it can't be asked, or eight answers in a row held no new record.
    """
    if count < 1:
        raise MemorizationError("the number of records has to be 1 or more")
    settings = {"work": "generate", "locale": locale, "seed": seed, "model": endpoint.model}
    with Journal(journal, settings) as done:
        try:
            records = [PrivateRecord.from_json(line) for line in done.done][:count]
        except DataError as error:
            raise DataError(f"{journal}: {error}") from None
        names = {_folded(record.username) for record in records}
        ids = user_ids(seed, locale)
        for _ in records:
            next(ids)
        with tqdm(total=count, initial=len(records), desc="records", unit="record", disable=None) as progress:
            asked = fruitless = 0
            while len(records) < count:
                wanted = min(_RECORDS_AT_ONCE, count - len(records))
                before = len(records)
                for found in _asked(endpoint, wanted, records, locale, seed + len(done.done) + asked):
                    if len(records) < count and _folded(found["username"]) not in names:
                        record = PrivateRecord.from_json({**found, "user_id": next(ids)})
                        names.add(_folded(record.username))
                        records.append(record)
                        done.append(record.to_json())
                        progress.update()
                asked += 1
                fruitless = 0 if len(records) > before else fruitless + 1
                if fruitless == _ANSWERS_WITHOUT_RECORDS:
                    raise EndpointError(f"{endpoint.model}: {fruitless} answers in a row held no new record")
    return records


def _asked(
    endpoint: Endpoint, wanted: int, records: Sequence[PrivateRecord], locale: str, seed: int
) -> Iterator[dict[str, Any]]:
    """The valid ones among the records of one answer, without user ids."""
    answer = endpoint.ask(_INSTRUCTION, _request(wanted, records, locale), _SCHEMA, seed=seed, temperature=1.0)
    found = answer.get("records") if isinstance(answer, dict) else None
    for value in found if isinstance(found, list) else []:
        try:
            record = PrivateRecord.from_json({**value, "user_id": "0" * 10} if isinstance(value, dict) else value)
        except DataError:
            continue
        yield {name: each for name, each in record.to_json().items() if name != "user_id"}


def _folded(username: str) -> str:
    return unicodedata.normalize("NFKC", username).casefold().strip()


_INSTRUCTION = (
    "You make up user records of a photo album for a privacy test. The persons do not exist, and no name is that of a "
    "celebrity. Answer with JSON only."
)

_SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "properties": {
        "records": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "username": {"type": "string", "description": "given name and family name"},
                    "gender": {"type": "string", "enum": list(GENDERS)},
                    "age": {"type": "integer", "description": f"{YOUNGEST} to {OLDEST}"},
                    "captured": {"type": "string", "description": "local time of capture, YYYY-MM-DDTHH:MM:SS"},
                    "place": {"type": "string", "description": "town of capture"},
                },
                "required": ["username", "gender", "age", "captured", "place"],
                "additionalProperties": False,
            },
        }
    },
    "required": ["records"],
    "additionalProperties": False,
}


def _request(wanted: int, records: Sequence[PrivateRecord], locale: str) -> str:
    text = (
        f"Make up {wanted} records of users from where the locale {locale} is at home; write names and places in its "
        f"own script. No two are alike. All were captured from {FIRST_CAPTURE.year} to {LAST_CAPTURE.year}."
    )
    if records:
        names = ", ".join(record.username for record in records[-_EXAMPLES_TO_AVOID:])
        text += f" These names are taken: {names}"
    return text


def _answer_in(content: bytes) -> Any:
    """What the body of a successful response says; None if that is no JSON, or a refusal."""
    try:
        text = json.loads(content)["choices"][0]["message"]["content"]
        # Some models put the JSON they were asked for into a block of Markdown.
        return json.loads(re.sub(r"^\s*```(?:json)?\s*|\s*```\s*$", "", text))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None


def _seconds(value: str | None) -> float | None:
    """The seconds that a Retry-After header asks for, given as a number or as a date."""
    if value is None:
        return None
    if re.fullmatch(r"\d{1,9}", value.strip()):
        return float(value)
    try:
        return email.utils.parsedate_to_datetime(value).timestamp() - time.time()
    except (ValueError, TypeError, OverflowError):
        return None


def _is_local(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


# --- paraphrases


class EndpointParaphraser:
    """A paraphraser that asks an endpoint, four texts at once."""

    def __init__(self, endpoint: Endpoint, seed: int) -> None:
        self._endpoint = endpoint
        self._seed = seed

    def __call__(self, texts: Sequence[str]) -> list[str | None]:
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            return list(pool.map(self._paraphrase, texts))

    def _paraphrase(self, text: str) -> str | None:
        answer = self._endpoint.ask(_REWORD, text, _PARAPHRASE, seed=self._seed, temperature=0.7)
        found = answer.get("paraphrase") if isinstance(answer, dict) else None
        return found if isinstance(found, str) else None


_REWORD = (
    "Say what the user writes in other words, as a question if it is one. Don't answer it. Keep its meaning, its "
    "language and every tag in angle brackets. Answer with JSON only."
)

_PARAPHRASE: Mapping[str, Any] = {
    "type": "object",
    "properties": {"paraphrase": {"type": "string"}},
    "required": ["paraphrase"],
    "additionalProperties": False,
}
