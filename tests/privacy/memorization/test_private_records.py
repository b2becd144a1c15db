"""Private records: from Faker, from an endpoint, and in files."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import unicodedata
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from privacy.cli import main
from privacy.errors import DataError, EndpointError, MemorizationError
from privacy.memorization.endpoint import Endpoint, EndpointParaphraser, generate_with
from privacy.memorization.records import (
    GENDERS,
    OLDEST,
    YOUNGEST,
    PrivateRecord,
    generate,
    read_records,
    user_ids,
    write_records,
)

SCRIPTS = {"en_US": "LATIN", "de_DE": "LATIN", "ja_JP": "CJK", "ru_RU": "CYRILLIC", "fa_IR": "ARABIC", "el_GR": "GREEK"}


def test_no_two_records_share_a_user_name_or_id() -> None:
    records = generate(2000)
    assert len({record.username for record in records}) == 2000
    assert len({record.user_id for record in records}) == 2000


def test_records_are_plausible() -> None:
    records = generate(400)
    assert {record.gender for record in records} == set(GENDERS)
    ages = [record.age for record in records]
    assert YOUNGEST <= min(ages) <= 22
    assert 75 <= max(ages) <= OLDEST
    assert all(7 <= record.captured.hour < 23 for record in records)
    assert all(len(record.user_id) == 10 and record.user_id.isdigit() for record in records)
    assert {record.user_id[0] for record in records} == set("0123456789")


def test_the_same_seed_gives_the_same_records_in_another_process() -> None:
    code = "from privacy.memorization.records import generate; print(generate(5, seed=3, locale='de_DE'))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert other.strip() == str(generate(5, seed=3, locale="de_DE"))
    assert generate(5, seed=3, locale="de_DE") != generate(5, seed=4, locale="de_DE")


def test_more_records_begin_with_the_same_ones() -> None:
    assert generate(20)[:7] == generate(7)


@pytest.mark.parametrize(("locale", "script"), SCRIPTS.items())
def test_names_and_places_are_in_the_script_of_the_locale(locale: str, script: str) -> None:
    for record in generate(40, locale=locale):
        letters = [each for each in record.username + record.place if each.isalpha()]
        kinds = {unicodedata.name(each).split()[0] for each in letters}
        assert kinds <= ({script, "HIRAGANA", "KATAKANA", "IDEOGRAPHIC"} if script == "CJK" else {script})


@pytest.mark.parametrize("locale", ["xx_YY", "ar_AA", "es_AR", "../x"])
def test_a_locale_without_names_or_places_of_its_own_is_refused(locale: str) -> None:
    with pytest.raises(MemorizationError, match="Faker"):
        generate(1, locale=locale)


def test_a_locale_with_too_few_names_says_so() -> None:
    with pytest.raises(MemorizationError, match="too few names"):
        generate(6000, locale="ko_KR")


def test_the_text_of_a_record_has_a_line_for_each_field() -> None:
    record = generate(1)[0]
    assert record.text().split("\n") == [
        f"username: {record.username}",
        f"user id: {record.user_id}",
        f"gender: {record.gender}",
        f"age: {record.age}",
        f"captured: {record.captured:%Y-%m-%d %H:%M}",
        f"place: {record.place}",
    ]
    assert record.text(["user_id"]) == f"user id: {record.user_id}"


def test_records_are_read_as_they_were_written(tmp_path: Path) -> None:
    records = generate(20, locale="ja_JP")
    write_records(tmp_path / "records.jsonl", records)
    assert read_records(tmp_path / "records.jsonl") == records
    assert records[0].username in (tmp_path / "records.jsonl").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("user_id", "123"),
        ("user_id", 1234567890),
        ("username", ""),
        ("username", "two\nlines"),
        ("gender", "unknown"),
        ("age", 200),
        ("age", True),
        ("captured", "yesterday"),
        ("captured", "2020-01-01T00:00:00+02:00"),
        ("captured", "1920-01-01T00:00:00"),
        ("place", None),
    ],
)
def test_a_field_that_cannot_be_is_named_with_its_row(tmp_path: Path, field: str, value: object) -> None:
    first, second = (record.to_json() for record in generate(2))
    path = tmp_path / "records.jsonl"
    path.write_text(json.dumps(first) + "\n" + json.dumps({**second, field: value}) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=rf"records.jsonl: row 2: field '{field}'"):
        read_records(path)


def test_a_record_listed_twice_is_refused(tmp_path: Path) -> None:
    write_records(tmp_path / "records.jsonl", generate(3) * 2)
    with pytest.raises(DataError, match="row 4: field 'user_id': is that of row 1"):
        read_records(tmp_path / "records.jsonl")


def test_generate_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["memorization", "generate", "--count", "5", "--locale", "de_DE", "--output"]
    assert main([*command, str(tmp_path / "records.jsonl")]) == 0
    assert read_records(tmp_path / "records.jsonl") == generate(5, locale="de_DE")
    assert main([*command, str(tmp_path / "no" / "records.jsonl")]) == 2
    assert main(["memorization", "generate", "--count", "0", "--output", str(tmp_path / "r.jsonl")]) == 2
    assert capsys.readouterr().err.count("\n") == 2
    assert [path.name for path in tmp_path.iterdir()] == ["records.jsonl"]


# --- a language model behind an endpoint

Reply = Callable[[int, dict[str, Any]], tuple[int, str]]


class Server:
    """Answers chat requests, on this machine, with what `reply(number, body)` says; keeps what was asked."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.reply: Reply = lambda number, body: (200, "")
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.asked.append(body)
                server.keys.append(self.headers.get("Authorization"))
                status, text = server.reply(len(server.asked), body)
                content = json.dumps({"choices": [{"message": {"content": text}}]}).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


def endpoint(server: Server, **options: Any) -> Endpoint:
    return Endpoint(server.url, "a-model", first_delay=0.001, **options)


def answered(names: list[str], **changed: object) -> str:
    record = {"gender": "female", "age": 40, "captured": "2020-05-06T07:08:09", "place": "Aix", **changed}
    return json.dumps({"records": [{"username": name, **record} for name in names]})


def generated(server: Server, tmp_path: Path, count: int, **options: Any) -> list[PrivateRecord]:
    return generate_with(
        endpoint(server, **options), count, seed=1, locale="fr_FR", journal=tmp_path / "records.partial"
    )


def test_what_the_model_repeats_is_asked_for_again(server: Server, tmp_path: Path) -> None:
    replies = [answered(["Ana Roy", "ANA ROY", "Léo Petit"]), answered(["Ana Roy"]), answered(["Zoé Faure"])]
    server.reply = lambda number, body: (200, replies[number - 1])
    records = generated(server, tmp_path, 3)
    assert [record.username for record in records] == ["Ana Roy", "Léo Petit", "Zoé Faure"]
    assert "Ana Roy" in server.asked[1]["messages"][1]["content"]
    assert server.asked[0]["response_format"]["json_schema"]["strict"]


@pytest.mark.parametrize(
    "wrong", [{"age": "forty"}, {"age": 12}, {"gender": "?"}, {"captured": "2020"}, {"place": ""}, {"more": 1}]
)
def test_a_record_with_a_wrong_field_is_asked_for_again(
    server: Server, tmp_path: Path, wrong: dict[str, object]
) -> None:
    server.reply = lambda number, body: (200, answered(["Ana Roy"], **wrong) if number == 1 else answered(["Léo Roy"]))
    assert [record.username for record in generated(server, tmp_path, 1)] == ["Léo Roy"]


def test_user_ids_never_come_from_the_model(server: Server, tmp_path: Path) -> None:
    server.reply = lambda number, body: (200, answered([f"Ana Roy {number}"]))
    ids = user_ids(1, "fr_FR")
    assert [record.user_id for record in generated(server, tmp_path, 4)] == [next(ids) for _ in range(4)]


@pytest.mark.parametrize("text", ["", "no JSON", "[]", '{"records": 3}', '{"records": [3, null]}', "[" * 5000])
def test_a_model_that_gives_no_records_is_given_up(server: Server, tmp_path: Path, text: str) -> None:
    server.reply = lambda number, body: (200, text)
    with pytest.raises(EndpointError, match="8 answers in a row held no new record"):
        generated(server, tmp_path, 1)
    assert len(server.asked) == 8


def test_a_busy_server_is_asked_again_but_not_forever(server: Server, tmp_path: Path) -> None:
    server.reply = lambda number, body: (503, "") if number < 3 else (200, answered(["Ana Roy"]))
    assert len(generated(server, tmp_path, 1)) == 1
    server.reply = lambda number, body: (429, "")
    with pytest.raises(EndpointError, match="no answer after 3 attempts: status 429"):
        generated(server, tmp_path, 2, attempts=3)


def test_an_interrupted_generation_goes_on(server: Server, tmp_path: Path) -> None:
    server.reply = lambda number, body: (200, answered(["Ana Roy", "Léo Petit"])) if number == 1 else (400, "")
    with pytest.raises(EndpointError, match="status 400"):
        generated(server, tmp_path, 3)
    server.reply = lambda number, body: (200, answered(["Ana Roy", "Zoé Faure"]))
    records = generated(server, tmp_path, 3)
    assert [record.username for record in records] == ["Ana Roy", "Léo Petit", "Zoé Faure"]
    assert len({record.user_id for record in records}) == 3


def test_the_key_is_sent_and_shown_nowhere(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PRIVACY_ENDPOINT_API_KEY", "sk-secret")
    server.reply = lambda number, body: (200, answered(["Ana Roy"])) if number == 1 else (401, "sk-secret")
    output = tmp_path / "records.jsonl"
    command = ["memorization", "generate", "--endpoint", server.url, "--model", "a", "--output", str(output)]
    assert main([*command, "--count", "1"]) == 0
    assert main([*command, "--count", "2"]) == 2
    captured = capsys.readouterr()
    assert "PRIVACY_ENDPOINT_API_KEY set and right" in captured.err
    assert "sk-secret" not in captured.out + captured.err + repr(Endpoint.from_environment(server.url, "a"))
    assert server.keys == ["Bearer sk-secret"] * 2
    assert len(read_records(output)) == 1


@pytest.mark.parametrize(
    ("url", "key"),
    [("ftp://host/v1", None), ("http://user:pw@host/v1", None), ("http://host/v1", "key"), ("https://host/v1", "a\nb")],
)
def test_an_address_that_would_leak_the_key_is_refused(url: str, key: str | None) -> None:
    with pytest.raises(EndpointError):
        Endpoint(url, "a-model", key)


def test_a_redirect_is_not_followed(server: Server, tmp_path: Path) -> None:
    server.reply = lambda number, body: (307, "")
    with pytest.raises(EndpointError, match="status 307"):
        generated(server, tmp_path, 1)
    assert len(server.asked) == 1


def test_an_endpoint_paraphrases(server: Server) -> None:
    def reply(number: int, body: dict[str, Any]) -> tuple[int, str]:
        text = body["messages"][1]["content"]
        return 200, '{"other": 1}' if text == "b" else f'```json\n{{"paraphrase": "other {text}"}}\n```'

    server.reply = reply
    assert EndpointParaphraser(endpoint(server), 1)(["a", "b", "c"]) == ["other a", None, "other c"]
