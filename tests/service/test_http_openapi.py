"""The description of the API: every operation has its errors, and every example is true of the running service."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema
import pytest
from running_service import Running, running_service

from latentguard import LatentGuard
from latentguard.service.access import Scope
from latentguard.service.errors import PROBLEMS

BODIES = ("application/json", "application/problem+json")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, default_guard: LatentGuard) -> Iterator[Running]:
    with running_service(tmp_path_factory.mktemp("service"), default_guard) as running:
        yield running


@pytest.fixture(scope="module")
def client(service: Running) -> Iterator[httpx.Client]:
    with service.client(Scope.admin) as made:
        yield made


@pytest.fixture(scope="module")
def description(client: httpx.Client) -> dict[str, Any]:
    found: dict[str, Any] = client.get("/openapi.json").json()
    return found


def operations(description: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in description["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def validate(description: dict[str, Any], schema: dict[str, Any], value: Any) -> None:
    jsonschema.validate(value, schema | {"components": description["components"]})


def resolved(description: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    name = schema.get("$ref", "").rsplit("/", 1)[-1]
    found: dict[str, Any] = description["components"]["schemas"][name] if name else schema
    return found


def request_examples(description: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any], Any]]:
    for method, path, operation in operations(description):
        content = operation.get("requestBody", {}).get("content", {}).get("application/json")
        if content is not None:
            for example in resolved(description, content["schema"]).get("examples", []):
                yield method, path, operation, example


def test_every_operation_with_a_json_body_has_an_example(description: dict[str, Any]) -> None:
    with_body = {(method, path) for method, path, op in operations(description) if "requestBody" in op}
    binary = {("PUT", "/v1/classify-encrypted/keys"), ("POST", "/v1/classify-encrypted")}
    assert {(method, path) for method, path, _, _ in request_examples(description)} == with_body - binary


def test_every_answer_in_json_has_an_example_or_is_a_list_of_what_there_is(description: dict[str, Any]) -> None:
    lists = {"JobList", "KeyList", "NewKeyBody", "KeyBody", "AuditList", "AuditReportBody", "AlertList", "Health"}
    without = set()
    for _, _, operation in operations(description):
        for status, answer in operation["responses"].items():
            schema = answer.get("content", {}).get("application/json", {}).get("schema", {})
            for part in schema.get("anyOf", [schema]):
                found = resolved(description, part)
                if status.startswith("2") and found and not found.get("examples"):
                    without.add(found.get("title"))
    assert without <= lists | {None}


def test_examples_of_answers_fit_their_schemas(description: dict[str, Any]) -> None:
    count = 0
    for schema in description["components"]["schemas"].values():
        for example in schema.get("examples", []):
            validate(description, schema, example)
            count += 1
    assert count >= 15


def test_examples_of_errors_are_problems_of_their_status(description: dict[str, Any]) -> None:
    body = description["components"]["schemas"]["ProblemBody"]
    codes = set()
    for _, path, operation in operations(description):
        if path.startswith("/v1/"):
            assert {"401", "403", "429", "500", "503", "504"} <= operation["responses"].keys()
        for status, answer in operation["responses"].items():
            for code, example in (
                answer.get("content", {}).get("application/problem+json", {}).get("examples", {}).items()
            ):
                validate(description, body, example["value"])
                assert example["value"]["code"] == code
                assert str(example["value"]["status"]) == status
                codes.add(code)
    hidden = {"unavailable", "vault_unavailable"}  # of no operation in particular
    assert {problem.code for problem in PROBLEMS.values()} - codes <= hidden


def test_every_example_of_a_request_is_answered_as_described(description: dict[str, Any], client: httpx.Client) -> None:
    sent = set()
    key = client.post("/v1/keys", json={"name": "an example's", "scopes": ["screen"]}).json()["id"]
    for method, path, operation, example in request_examples(description):
        answer = client.request(method, path.replace("{key_id}", key), json=example)
        described = operation["responses"][str(answer.status_code)]["content"]
        media_type = answer.headers["content-type"].partition(";")[0]
        if path == "/v1/generate":
            assert answer.json()["code"] == "no_pipeline"
            continue
        assert answer.is_success, (path, answer.text)
        validate(description, described[media_type]["schema"], answer.json())
        sent.add(path)
    assert {"/v1/screen", "/v1/moderations", "/v1/concepts", "/v1/calibrate", "/v1/policy", "/v1/keys"} <= sent


def test_every_reading_operation_answers_as_described(description: dict[str, Any], client: httpx.Client) -> None:
    client.post("/v1/screen", json={"prompt": "a red wine"})
    job = client.post("/v1/screen", json={"prompt": "a red wine", "wait": False}).json()["id"]
    for method, path, operation in operations(description):
        if method != "GET" or path == "/metrics" or path.endswith("/result"):
            continue
        answer = client.get(path.replace("{job_id}", job))
        assert answer.status_code == 200, (path, answer.text)
        validate(description, operation["responses"]["200"]["content"]["application/json"]["schema"], answer.json())


def test_the_description_needs_no_key_and_names_no_other_place(service: Running) -> None:
    with service.client() as nobody:
        answer = nobody.get("/openapi.json")
    assert answer.status_code == 200
    assert "http" not in json.dumps(answer.json()["paths"]).replace("https://", "http").replace("httpValidation", "")
    assert {"HTTPBearer", "APIKeyHeader"} <= answer.json()["components"]["securitySchemes"].keys()
