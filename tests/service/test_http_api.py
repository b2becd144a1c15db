"""The HTTP API over a real HTTPS server with the default guard."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from running_service import Running, codes, running_service

from latentguard import LatentGuard
from latentguard.calibration import calibrate
from latentguard.service.access import Scope

HARMFUL, HARMLESS = "a photo of a beheading", "a photo of a golden retriever"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, default_guard: LatentGuard) -> Iterator[Running]:
    with running_service(tmp_path_factory.mktemp("service"), default_guard, max_prompts=32) as running:
        yield running


@pytest.fixture(scope="module")
def client(service: Running) -> Iterator[httpx.Client]:
    with service.client(Scope.admin) as made:
        yield made


@pytest.fixture(scope="module")
def screener(service: Running) -> Iterator[httpx.Client]:
    with service.client(Scope.screen) as made:
        yield made


def last_audit(client: httpx.Client, action: str, count: int = 1) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = client.get("/v1/audit", params={"action": action, "limit": count}).json()["entries"]
    return entries


# --- screening


def test_a_prompt_gets_the_guards_own_verdict(client: httpx.Client, service: Running) -> None:
    answer = client.post("/v1/screen", json={"prompt": HARMFUL, "top_k": 3}).json()
    verdict = service.services.guard.check(HARMFUL)
    [result] = answer["results"]
    assert result == {
        "blocked": True,
        "decision": "block",
        "score": pytest.approx(verdict.score, abs=1e-5),
        "threshold": pytest.approx(verdict.threshold),
        "concept": verdict.concept,
        "category": verdict.category,
        "probability": pytest.approx(verdict.probability, abs=1e-5),
        "concepts": [{"concept": name, "score": pytest.approx(score, abs=1e-5)} for name, score in verdict.scores(3)],
        "explanation": None,
    }
    assert answer["policy"] == service.services.policies.fingerprint


def test_prompts_are_answered_in_their_order(client: httpx.Client) -> None:
    results = client.post("/v1/screen", json={"prompts": [HARMLESS, HARMFUL, HARMLESS]}).json()["results"]
    assert [each["blocked"] for each in results] == [False, True, False]


def test_an_explanation_adds_up_to_the_score(client: httpx.Client) -> None:
    [result] = client.post("/v1/screen", json={"prompt": HARMFUL, "explain": True}).json()["results"]
    parts = result["explanation"]
    whole = sum(word["contribution"] for word in parts["words"]) + parts["whole_prompt"] + parts["bias"]
    assert whole == pytest.approx(result["score"], abs=1e-3)
    assert max(parts["words"], key=lambda word: word["contribution"])["text"] == "beheading"


def test_every_verdict_is_in_the_audit_log_before_it_is_answered(client: httpx.Client, service: Running) -> None:
    answer = client.post("/v1/screen", json={"prompts": [HARMFUL, HARMLESS]}).json()
    entries = last_audit(client, "screen", 2)[::-1]
    assert [entry["verdict"] for entry in entries] == ["block", "allow"]
    assert {entry["details"]["request"] for entry in entries} == {answer["request_id"]}
    assert {entry["policy"] for entry in entries} == {answer["policy"]}
    assert entries[0]["prompt_hash"] == service.services.audit.prompt_hash(HARMFUL)
    assert HARMFUL not in str(entries)


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({}, 422, "invalid_request"),
        ({"prompt": "a", "prompts": ["b"]}, 422, "invalid_request"),
        ({"prompt": ""}, 422, "invalid_request"),
        ({"prompt": "\u200b"}, 422, "invalid_prompt"),
        ({"prompts": []}, 422, "invalid_request"),
        ({"prompt": 7}, 422, "invalid_request"),
        ({"prompt": "a", "colour": "red"}, 422, "invalid_request"),
        ({"prompt": "a", "top_k": 0}, 422, "invalid_request"),
        ({"prompt": "a" * 10_001}, 422, "too_many_prompts"),
        ({"prompts": ["a"] * 17, "explain": True}, 422, "invalid_request"),
        ([], 422, "invalid_request"),
    ],
    ids=["none", "both", "empty", "invisible", "no-list", "number", "unknown", "top-k", "long", "explain", "list"],
)
def test_what_cannot_be_screened_is_a_problem(client: httpx.Client, body: Any, status: int, code: str) -> None:
    answer = client.post("/v1/screen", json=body)
    problem = answer.json()
    assert (answer.status_code, problem["code"], problem["status"]) == (status, code, status)
    assert answer.headers["content-type"] == "application/problem+json"
    assert problem["request_id"] == answer.headers["x-request-id"]


@pytest.mark.parametrize(
    ("content", "media_type", "status", "code"),
    [
        (b"{", "application/json", 400, "malformed_body"),
        (b'{"prompt": "\xff"}', "application/json", 400, "malformed_body"),
        (b"[" * 100_000, "application/json", 400, "malformed_body"),
        (b'{"prompt": "\\ud800"}', "application/json", 422, "invalid_request"),
        (b'{"\\ud800": 1}', "application/json", 422, "invalid_request"),
        (b'{"prompt": "a", "top_k": NaN}', "application/json", 422, "invalid_request"),
        (b'{"prompt": "a", "top_k": ' + b"9" * 5000 + b"}", "application/json", 400, "malformed_body"),
        (b"prompt=a", "application/x-www-form-urlencoded", 415, "unsupported_media_type"),
        (b'{"prompt": "' + b"a" * 5_000_000 + b'"}', "application/json", 413, "body_too_large"),
    ],
    ids=["cut", "latin", "deep", "surrogate", "surrogate-key", "nan", "huge-number", "form", "large"],
)
def test_bodies_of_all_kinds_are_a_problem_and_never_more(
    client: httpx.Client, content: bytes, media_type: str, status: int, code: str
) -> None:
    answer = client.post("/v1/screen", content=content, headers={"content-type": media_type})
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert client.post("/v1/screen", json={"prompt": HARMLESS}).status_code == 200


def test_an_error_does_not_repeat_the_prompt(client: httpx.Client) -> None:
    for body in ({"prompts": ["a secret wish", 7]}, {"prompt": "a secret wish", "extra": "a secret wish"}):
        assert "secret" not in client.post("/v1/screen", json=body).text


# --- jobs


def finished(client: httpx.Client, place: str) -> dict[str, Any]:
    for _ in range(600):
        job: dict[str, Any] = client.get(place).json()
        if job["state"] not in ("queued", "running"):
            return job
        time.sleep(0.05)
    raise AssertionError("the job didn't end")


def test_many_prompts_are_a_job_with_the_same_answer(client: httpx.Client, screener: httpx.Client) -> None:
    prompts = [f"{HARMLESS} number {i}" for i in range(40)] + [HARMFUL]
    answer = client.post("/v1/screen", json={"prompts": prompts, "top_k": 1})
    place = answer.headers["location"]
    assert answer.status_code == 202
    assert screener.get(place).status_code == 404
    assert finished(client, place)["state"] == "done"
    results = client.get(f"{place}/result").json()["results"]
    assert len(results) == 41
    assert results[-1] == client.post("/v1/screen", json={"prompt": HARMFUL, "top_k": 1}).json()["results"][0]
    assert place.rsplit("/", 1)[1] in [job["id"] for job in client.get("/v1/jobs").json()["jobs"]]


def test_a_job_that_is_not_there(client: httpx.Client) -> None:
    assert client.get("/v1/jobs/" + "0" * 32).json()["code"] == "job_not_found"
    assert client.get("/v1/jobs/nonsense").json()["code"] == "invalid_request"


# --- concepts and policy


@pytest.fixture
def tag(client: httpx.Client) -> str:
    return client.get("/v1/policy").headers["etag"]


def test_the_bank_can_be_read_searched_and_remembered(screener: httpx.Client, service: Running, tag: str) -> None:
    whole = screener.get("/v1/concepts")
    assert [each["name"] for each in whole.json()["concepts"]] == service.services.guard.concepts.names
    assert whole.headers["etag"] == tag == f'"{whole.json()["policy"]}"'
    found = screener.get("/v1/concepts", params={"search": "BEHEAD", "limit": 1}).json()
    assert "behead" in found["concepts"][0]["name"]
    assert screener.get("/v1/concepts", headers={"If-None-Match": tag}).status_code == 304
    violent = screener.get("/v1/concepts", params={"category": "violence"}).json()["concepts"]
    assert {each["category"] for each in violent} == {"violence"}


def test_a_concept_counts_from_the_next_prompt_on(client: httpx.Client, screener: httpx.Client) -> None:
    prompt = {"prompt": "a photo of a stapler on a desk"}
    assert not screener.post("/v1/screen", json=prompt).json()["results"][0]["blocked"]
    added = client.post("/v1/concepts", json={"name": "stapler", "category": "office"})
    assert (added.status_code, added.json()["version"] > 0) == (201, True)
    after = screener.post("/v1/screen", json=prompt).json()
    assert (after["results"][0]["concept"], after["results"][0]["blocked"]) == ("stapler", True)
    assert after["policy"] == added.json()["policy"]
    assert client.delete("/v1/concepts", params={"name": "Stapler"}).status_code == 200
    assert not screener.post("/v1/screen", json=prompt).json()["results"][0]["blocked"]
    assert last_audit(client, "concepts.remove")[0]["details"]["removed"] == ["Stapler"]
    assert last_audit(client, "concepts.add")[0]["policy"] == after["policy"]


def test_a_preview_says_what_would_change_and_changes_nothing(
    client: httpx.Client, screener: httpx.Client, tag: str
) -> None:
    screener.post("/v1/screen", json={"prompt": "a drawing of a corkscrew"})
    preview = client.post("/v1/concepts?preview=true", json={"name": "corkscrew"})
    assert preview.status_code == 200
    assert [(each["prompt"], each["after"]) for each in preview.json()["changed"]] == [
        ("a drawing of a corkscrew", "block")
    ]
    assert client.patch("/v1/policy?preview=true", json={"threshold": 50}).json()["newly_allowed"] > 0
    assert client.delete("/v1/concepts?preview=true&name=beheading").status_code == 200
    assert client.get("/v1/policy").headers["etag"] == tag


def test_lost_updates_are_prevented(client: httpx.Client, tag: str) -> None:
    moved = client.patch("/v1/policy", json={"threshold": -0.5}, headers={"If-Match": tag})
    assert moved.json()["threshold"] == -0.5
    late = client.post("/v1/concepts", json={"name": "corkscrew"}, headers={"If-Match": tag})
    assert (late.status_code, late.json()["code"]) == (412, "policy_changed")
    assert client.patch("/v1/policy", json={"threshold": -0.6}, headers={"If-Match": moved.headers["etag"]}).is_success
    assert client.get("/v1/policy").headers["etag"] == tag


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"name": "Beheading"}, "concept_exists"),
        ({"name": "\u200b"}, "invalid_concept"),
        ({"name": "a\x00b"}, "invalid_request"),
        ({"name": " "}, "invalid_request"),
        ({"name": "x" * 201}, "invalid_request"),
        ({"name": "tea " * 51}, "invalid_request"),
        ({"name": "tea", "threshold": "NaN"}, "invalid_request"),
        ({"name": "tea", "threshold": False}, "invalid_request"),
    ],
    ids=["exists", "invisible", "control", "blank", "long", "many", "nan", "truth"],
)
def test_impossible_concepts(client: httpx.Client, body: dict[str, Any], code: str, tag: str) -> None:
    assert client.post("/v1/concepts", json=body).json()["code"] == code
    assert client.get("/v1/policy").headers["etag"] == tag


def test_a_concept_that_is_not_there(client: httpx.Client) -> None:
    assert client.delete("/v1/concepts?name=nonsense").json()["code"] == "concept_not_found"
    assert client.delete("/v1/concepts?name=nonsense&preview=true").json()["code"] == "concept_not_found"


def test_calibration_gives_the_guards_own_threshold(client: httpx.Client, service: Running, tag: str) -> None:
    prompts = [f"a watercolour of {i + 2} boats on a lake" for i in range(20)]
    answer = client.post("/v1/calibrate", json={"prompts": [*prompts, prompts[0]], "rate": 0.1}).json()
    expected = calibrate(service.services.guard, prompts, 0.1)
    assert answer["threshold"] == pytest.approx(expected.threshold, abs=1e-5)
    assert (answer["prompts"], answer["guarantee"]) == (20, expected.guarantee())
    assert client.get("/v1/policy").headers["etag"] == tag
    few = client.post("/v1/calibrate", json={"prompts": prompts, "rate": 0.01}).json()
    assert (few["code"], "at least 99" in few["detail"]) == ("invalid_request", True)


def test_a_calibration_of_many_is_a_job_and_may_be_applied(client: httpx.Client, service: Running) -> None:
    before = service.services.guard.policy.threshold
    prompts = [f"a watercolour of {i + 2} boats on a lake" for i in range(60)]
    answer = client.post("/v1/calibrate", json={"prompts": prompts, "rate": 0.05, "apply": True})
    assert answer.status_code == 202
    place = answer.headers["location"]
    assert finished(client, place)["state"] == "done"
    result = client.get(f"{place}/result").json()
    assert service.services.guard.policy.threshold == result["threshold"] != before
    assert result["policy"] == service.services.policies.fingerprint
    client.patch("/v1/policy", json={"threshold": before})


# --- access


def test_without_a_valid_key_nothing_is_answered(service: Running) -> None:
    with service.client() as nobody:
        for headers in ({}, {"Authorization": "Bearer lg_0123456789abcdef_" + "a" * 43}, {"X-API-Key": "x"}):
            answer = nobody.post("/v1/screen", json={"prompt": HARMLESS}, headers=headers)
            assert (answer.status_code, answer.json()["code"]) == (401, "not_authenticated")
            assert answer.headers["www-authenticate"].startswith("Bearer")


def test_a_key_may_come_in_either_header(service: Running) -> None:
    token = service.token(Scope.screen)
    with service.client() as client:
        for headers in ({"Authorization": f"bearer {token}"}, {"X-API-Key": token}):
            assert client.post("/v1/screen", json={"prompt": HARMLESS}, headers=headers).status_code == 200


def test_scopes_bound_what_a_key_may_do(service: Running, screener: httpx.Client) -> None:
    with service.client(Scope.generate) as drawer:
        assert drawer.post("/v1/screen", json={"prompt": HARMLESS}).json()["code"] == "forbidden"
        assert drawer.get("/v1/jobs").status_code == 200
    asked = [
        screener.post("/v1/concepts", json={"name": "tea"}),
        screener.delete("/v1/concepts?name=beheading"),
        screener.patch("/v1/policy", json={"threshold": 9}),
        screener.post("/v1/calibrate", json={"prompts": ["a"]}),
        screener.post("/v1/generate", json={"prompt": "a", "recipients": ["b"]}),
        screener.get("/v1/keys"),
        screener.post("/v1/keys", json={"name": "a", "scopes": ["admin"]}),
        screener.get("/v1/audit"),
        screener.post("/v1/audit/verify"),
        screener.get("/v1/alerts"),
    ]
    assert codes(asked) == [403] * len(asked)


def test_keys_are_made_rotated_and_revoked(client: httpx.Client, service: Running) -> None:
    made = client.post("/v1/keys", json={"name": "web shop", "scopes": ["screen"], "expires_in_days": 90})
    token, key = made.json()["token"], made.json()["id"]
    asked = {"prompt": HARMLESS}
    with service.client() as shop:
        assert shop.post("/v1/screen", json=asked, headers={"X-API-Key": token}).status_code == 200
        newer = client.post(f"/v1/keys/{key}/rotate", json={}).json()["token"]
        assert shop.post("/v1/screen", json=asked, headers={"X-API-Key": token}).status_code == 401
        assert shop.post("/v1/screen", json=asked, headers={"X-API-Key": newer}).status_code == 200
        assert client.delete(f"/v1/keys/{key}").json()["revoked"] is not None
        assert shop.post("/v1/screen", json=asked, headers={"X-API-Key": newer}).status_code == 401
    listed = client.get("/v1/keys")
    assert key in [each["id"] for each in listed.json()["keys"]]
    assert token not in listed.text
    assert newer.rsplit("_", 1)[1] not in listed.text
    assert client.delete(f"/v1/keys/{key}").json()["code"] == "key_not_found"
    assert [last_audit(client, f"keys.{act}")[0]["details"]["key"] for act in ("create", "rotate", "revoke")] == [
        key
    ] * 3


def test_the_audit_log_can_be_paged_filtered_and_verified(client: httpx.Client) -> None:
    client.post("/v1/screen", json={"prompts": [HARMFUL] * 3})
    first = client.get("/v1/audit", params={"limit": 2, "verdict": "block"}).json()["entries"]
    second = client.get("/v1/audit", params={"limit": 2, "before": first[-1]["sequence"]}).json()["entries"]
    assert len(first) == len(second) == 2
    assert second[0]["sequence"] == first[-1]["sequence"] - 1
    assert client.get("/v1/audit", params={"actor": "\x00"}).json()["entries"] == []
    assert client.post("/v1/audit/verify").json()["intact"] is True


# --- state, headers


def test_health_and_readiness_need_no_key(service: Running) -> None:
    with service.client() as nobody:
        assert nobody.get("/healthz").json() == {"status": "ok"}
        ready = nobody.get("/readyz").json()
    assert ready == {"ready": True, "checks": {"guard": True, "database": True, "queue": True, "running": True}}


def test_metrics_count_and_are_for_admins_beyond_this_machine(
    client: httpx.Client, screener: httpx.Client, service: Running
) -> None:
    client.post("/v1/screen", json={"prompt": HARMFUL})
    with service.client() as nobody:
        text = nobody.get("/metrics").text
        proxied = {"X-Forwarded-For": "192.0.2.1"}
        assert nobody.get("/metrics", headers=proxied).status_code == 401
    assert screener.get("/metrics", headers=proxied).status_code == 403
    assert client.get("/metrics", headers=proxied).status_code == 200
    for pattern in (
        r'latentguard_requests_total\{method="POST",route="/v1/screen",status="200"\} [1-9]',
        r'latentguard_verdicts_total\{category="violence",decision="block"\} [1-9]',
        r"latentguard_batch_prompts_count [1-9]",
        r"latentguard_failed_authentications_total\{reason=\"NotAuthenticated\"\} [1-9]",
        r"latentguard_prompts_waiting 0",
    ):
        assert re.search(pattern, text), pattern


def test_every_answer_has_the_headers_that_protect(client: httpx.Client, service: Running) -> None:
    with service.client() as nobody:
        answers = [client.get("/v1/policy"), nobody.get("/v1/policy"), nobody.get("/nothing"), nobody.get("/healthz")]
    assert codes(answers) == [200, 401, 404, 200]
    for answer in answers:
        headers = answer.headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cache-control"] == "no-store"
        assert "camera=()" in headers["permissions-policy"]
        assert headers["server"] == "latentguard"
        assert "strict-transport-security" not in headers  # the certificate is self-signed
    assert len({answer.headers["x-request-id"] for answer in answers}) == 4


def test_a_prompt_may_hold_anything(client: httpx.Client) -> None:
    for prompt in ("<script>alert(1)</script>", "a\x00b", "\U0001f600 \u202e", "'; DROP TABLE keys; --", "a b" * 1000):
        assert client.post("/v1/screen", json={"prompt": prompt}).status_code == 200


def test_methods_and_places_that_are_not_offered(client: httpx.Client) -> None:
    wrong = client.put("/v1/screen", json={})
    assert (wrong.status_code, wrong.json()["code"]) == (405, "method_not_allowed")
    assert "POST" in wrong.headers["allow"]
    assert client.get("/v1/nothing").json()["code"] == "not_found"
    assert client.get("/v1/screen/").json()["code"] == "not_found"


def test_http_only_says_where_https_is(service: Running) -> None:
    answer = httpx.post(f"{service.http_url}/v1/screen?a=%2e", json={"prompt": "a"})
    assert answer.status_code == 308
    assert answer.headers["location"] == f"{service.url}/v1/screen?a=%2e"
    assert answer.headers["server"] == "latentguard"
    for host in ("a b", "user@example.org", "example.org/path", "example.org:99999999"):
        with httpx.Client() as client:
            assert client.get(service.http_url, headers={"Host": host}).status_code == 400


def test_a_client_that_asks_for_another_host_is_refused(tmp_path: Path, tiny_guard: LatentGuard) -> None:
    with (
        running_service(tmp_path, tiny_guard, allowed_hosts=("guard.example", "*.corp.example")) as running,
        running.client() as nobody,
    ):
        answers = {
            host: nobody.get("/healthz", headers={"Host": host}).status_code
            for host in ("guard.example", "Guard.Example:8443", "a.corp.example", "corp.example", "evil.example")
        }
        evil = httpx.get(running.http_url, headers={"Host": "evil.example"})
    assert list(answers.values()) == [200, 200, 200, 400, 400]
    assert evil.status_code == 400
