"""What the console refuses, and what it sends along, whatever browser asks."""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator

import httpx
import pytest
from console_server import Running, running
from models import CONCEPTS, random_mapping

from latentguard import LatentGuard, Policy
from latentguard.encoders.huggingface import HuggingFaceEncoder
from latentguard.records import ConceptEntry
from latentguard.service.access import Scope
from latentguard.service.console.web import SECURITY_POLICY, SESSION_COOKIE

_FIELD = re.compile(r'name="form_token" value="([0-9a-f]{64})"')
_FORMS = ("/try", "/concepts/preview", "/concepts", "/undo", "/threshold", "/audit/verify", "/audit/1/prompt", "/keys",
          "/keys/rotate", "/keys/revoke", "/sign-out")  # fmt: skip


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: HuggingFaceEncoder) -> Iterator[Running]:
    guard = LatentGuard(tiny_encoder, random_mapping(), CONCEPTS, Policy(3.5))
    with running(tmp_path_factory.mktemp("service"), guard, lockout_failures=3, store_prompts=True) as service:
        yield service


class _Visitor:
    """A browser without a screen: it keeps cookies and fills in forms."""

    def __init__(self, service: Running) -> None:
        trusted = ssl.create_default_context(cafile=service.certificate)
        self.http = httpx.Client(base_url=f"{service.url}/console", verify=trusted, timeout=60)

    def form_token(self, page: str) -> str:
        found = _FIELD.search(self.http.get(page).text)
        assert found is not None
        return found[1]

    def post(self, path: str, token: str, **fields: str) -> httpx.Response:
        return self.http.post(path, data={"form_token": token, **fields})

    def sign_in(self, token: str) -> httpx.Response:
        return self.post("/sign-in", self.form_token("/sign-in"), key=token)


@pytest.fixture
def visitor(service: Running) -> Iterator[_Visitor]:
    visitor = _Visitor(service)
    yield visitor
    visitor.http.close()


@pytest.fixture
def admin(service: Running, visitor: _Visitor) -> _Visitor:
    assert visitor.sign_in(service.key("operator", Scope.admin)[1]).headers["location"] == "/console/"
    return visitor


def test_nobody_sees_a_page_without_signing_in(visitor: _Visitor) -> None:
    for page in ("", "/overview", "/try", "/concepts", "/threshold", "/audit", "/audit/1", "/alerts", "/keys"):
        response = visitor.http.get(page or "/")
        assert (response.status_code, response.headers["location"]) == (303, "/console/sign-in")
    for path in _FORMS:
        assert visitor.http.post(path, data={}).headers["location"] == "/console/sign-in"


def test_the_root_leads_to_the_console(service: Running, visitor: _Visitor) -> None:
    response = visitor.http.get(f"{service.url}/", follow_redirects=True)
    assert response.url.path == "/console/sign-in"


@pytest.mark.parametrize("path", _FORMS)
def test_a_form_without_the_sessions_token_does_nothing(admin: _Visitor, service: Running, path: str) -> None:
    before = service.services.policies.fingerprint, len(service.services.keys.list())
    other = _Visitor(service)
    other.sign_in(service.key("somebody else", Scope.admin)[1])
    foreign = other.form_token("/try")
    other.http.close()
    for fields in ({}, {"form_token": "0" * 64}, {"form_token": foreign}):
        fields |= {"name": "x", "action": "add", "threshold": "1", "confirmed": "yes", "scope": "admin"}
        response = admin.http.post(path, data=fields)
        assert response.status_code == 422
        assert "nothing was done" in response.text
    assert admin.http.get("/overview").status_code == 200
    assert (service.services.policies.fingerprint, len(service.services.keys.list()) - 1) == before


def test_a_form_is_taken_in_one_encoding_only(admin: _Visitor) -> None:
    token = admin.form_token("/try")
    for request in ({"json": {"form_token": token}}, {"files": {"form_token": (None, token)}}, {"content": b"x"}):
        assert admin.http.post("/try", **request).status_code == 422


def test_signing_in_needs_the_form_of_this_browser(service: Running, visitor: _Visitor) -> None:
    _, token = service.key("operator", Scope.admin)
    other = _Visitor(service)
    foreign = other.form_token("/sign-in")
    other.http.close()
    visitor.form_token("/sign-in")
    assert visitor.post("/sign-in", foreign, key=token).status_code == 403
    assert SESSION_COOKIE not in visitor.http.cookies


def test_wrong_keys_lock_the_address_out_and_are_audited(service: Running, visitor: _Visitor) -> None:
    key, token = service.key("operator", Scope.admin)
    wrong = token[:-5] + ("AAAAA" if token[-5:] != "AAAAA" else "BBBBB")
    statuses = [visitor.sign_in(wrong).status_code for _ in range(4)]
    assert statuses == [401, 401, 401, 429]
    locked = visitor.sign_in(token)
    assert locked.status_code == 429
    assert int(locked.headers["retry-after"]) > 0
    assert "Too many wrong keys" in locked.text
    entries = service.services.audit.entries(action="console.sign_in_failed", limit=3)
    assert {entry.details["reason"] for entry in entries} == {"wrong_key"}
    assert wrong.split("_", 2)[2] not in str(entries)
    service.services.keys.revoke(key.id)


def test_a_key_without_a_fitting_scope_is_turned_away(service: Running, visitor: _Visitor) -> None:
    response = visitor.sign_in(service.key("painter", Scope.generate)[1])
    assert response.status_code == 403
    assert "neither the scope admin nor screen" in response.text
    assert SESSION_COOKIE not in visitor.http.cookies


def test_signing_in_changes_the_sessions_cookie(service: Running, admin: _Visitor) -> None:
    before = admin.http.cookies[SESSION_COOKIE]
    _, token = service.key("another", Scope.admin)
    form = {"form_token": "", "key": token}
    other = _Visitor(service)
    form["form_token"] = other.form_token("/sign-in")
    other.http.cookies.set(SESSION_COOKIE, before, domain="127.0.0.1")
    response = other.http.post("/sign-in", data=form)
    assert response.status_code == 303
    assert f"{SESSION_COOKIE}={before}" not in response.headers["set-cookie"]
    assert admin.http.get("/overview").headers.get("location") == "/console/sign-in"
    other.http.close()


@pytest.mark.parametrize("end", ["revoked", "rotated"])
def test_a_session_ends_with_its_keys_secret(service: Running, visitor: _Visitor, end: str) -> None:
    key, token = service.key("operator", Scope.admin)
    visitor.sign_in(token)
    assert visitor.http.get("/overview").status_code == 200
    if end == "revoked":
        service.services.keys.revoke(key.id)
    else:
        service.services.keys.rotate(key.id)
    assert visitor.http.get("/overview").headers["location"] == "/console/sign-in"


def test_who_rotates_the_own_key_stays_signed_in(service: Running, visitor: _Visitor) -> None:
    key, token = service.key("operator", Scope.admin)
    visitor.sign_in(token)
    visitor.post("/keys/rotate", visitor.form_token("/keys"), id=key.id, confirmed="yes")
    assert f"lg_{key.id}_" in visitor.http.get("/keys").text


def test_a_part_of_a_page_sends_the_whole_browser_to_sign_in(visitor: _Visitor) -> None:
    response = visitor.http.get("/overview?live=1", headers={"HX-Request": "true"})
    assert response.headers["hx-redirect"] == "/console/sign-in"
    assert response.content == b""


@pytest.mark.parametrize("page", ["/sign-in", "/overview", "/no-such-page", "/audit/7777777", "/audit/x"])
def test_every_page_forbids_what_it_does_not_need(admin: _Visitor, page: str) -> None:
    response = admin.http.get(page, follow_redirects=True)
    if page != "/no-such-page":  # the application's own answer, which has a stricter policy
        assert response.headers["content-security-policy"] == SECURITY_POLICY
    assert "frame-ancestors 'none'" in response.headers["content-security-policy"]
    assert response.headers["cache-control"] == "no-store"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["referrer-policy"] == "no-referrer"
    assert response.status_code == (404 if page in ("/no-such-page", "/audit/7777777", "/audit/x") else 200)


def test_static_files_are_kept_for_good_under_their_own_name_only(visitor: _Visitor) -> None:
    named = set(re.findall(r"/console(/static/[^\"]+)", visitor.http.get("/sign-in").text))
    assert len(named) == 5
    for path in named:
        response = visitor.http.get(path)
        assert response.status_code == 200
        assert "immutable" in response.headers["cache-control"]
        assert visitor.http.get(path.split("?")[0]).headers["cache-control"] == "no-cache"
    for path in ("/static/../web.py", "/static/%2e%2e/web.py", "/static/vendor/README.md", "/static/"):
        assert visitor.http.get(path).status_code == 404


def test_the_api_does_not_take_the_consoles_cookie(service: Running, admin: _Visitor) -> None:
    assert admin.http.post(f"{service.url}/v1/screen", json={"prompt": "a cat"}).status_code == 401


def test_a_stored_prompt_is_shown_on_request_and_that_is_audited(service: Running, admin: _Visitor) -> None:
    token = admin.form_token("/try")
    assert admin.post("/try", token, prompt="a <b>secret</b> cat").status_code == 200
    [entry] = service.services.audit.entries(action="console.try", limit=1)
    page = admin.http.get(f"/audit/{entry.sequence}").text
    assert "secret" not in page
    shown = admin.post(f"/audit/{entry.sequence}/prompt", token).text
    assert "a &lt;b&gt;secret&lt;/b&gt; cat" in shown
    [looked] = service.services.audit.entries(limit=1)
    assert (looked.action, looked.details["entry"]) == ("console.read_prompt", entry.sequence)


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/concepts", {"action": "add", "name": ""}),
        ("/concepts", {"action": "add", "name": "x" * 300}),
        ("/concepts", {"action": "add", "name": "a cat", "threshold": "nan"}),
        ("/concepts", {"action": "add", "name": "a cat", "threshold": "high"}),
        ("/concepts", {"action": "remove", "name": "no such concept"}),
        ("/concepts", {"action": "burn", "name": "a cat"}),
        ("/threshold", {"threshold": "inf", "confirmed": "yes"}),
        ("/threshold", {"threshold": "", "confirmed": "yes"}),
        ("/keys", {"name": "", "scope": "screen"}),
        ("/keys", {"name": "a key"}),
        ("/keys", {"name": "a key", "scope": "everything"}),
        ("/keys", {"name": "a key", "scope": "screen", "expires": "-1"}),
        ("/keys/revoke", {"id": "0123456789abcdef", "confirmed": "yes"}),
        ("/keys/rotate", {"id": "0123456789abcdef", "overlap": "1e9", "confirmed": "yes"}),
    ],
    ids=lambda value: value.strip("/").replace("/", "-") if isinstance(value, str) else None,
)
def test_what_cannot_be_is_refused_in_words(
    service: Running, admin: _Visitor, path: str, fields: dict[str, str]
) -> None:
    before = service.services.policies.fingerprint, service.services.keys.list()
    expected = {} if path.startswith("/keys") else {"expected": before[0]}
    response = admin.post(path, admin.form_token("/try"), **fields, **expected)
    if response.status_code == 303:
        response = admin.http.get(response.headers["location"].removeprefix("/console"))
        assert 'class="notice bad"' in response.text
    else:
        assert response.status_code == 422
        assert "<h1>" in response.text
    after = service.services.keys.list()
    assert service.services.policies.fingerprint == before[0]
    assert [(key.id, key.revoked) for key in after] == [(key.id, key.revoked) for key in before[1]]


def test_a_concept_may_have_a_category_and_a_threshold_of_its_own(service: Running, admin: _Visitor) -> None:
    fields = {"action": "add", "name": "a green door", "category": "house rules", "threshold": "2,5"}
    expected = service.services.policies.fingerprint
    assert admin.post("/concepts", admin.form_token("/concepts"), **fields, expected=expected).status_code == 303
    assert ConceptEntry("a green door", "house rules", 2.5) in service.services.guard.concepts.snapshot.concepts
    found = admin.http.get("/concepts", params={"q": "green", "category": "house rules"}).text
    assert '<th scope="row">a green door</th>' in found
    assert "2.50" in found
    assert '<th scope="row">' not in admin.http.get("/concepts", params={"q": "blue door"}).text
    admin.post("/undo", admin.form_token("/concepts"))
    assert "a green door" not in service.services.guard.concepts


def test_nothing_is_answered_that_cannot_be_written_down(
    service: Running, admin: _Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = admin.form_token("/try")
    database = service.services.settings.data_dir / "service.db"
    moved = database.with_suffix(".away")
    try:
        database.rename(moved)
        response = admin.post("/try", token, prompt="a cat")
    finally:
        moved.rename(database)
    assert response.status_code == 503
    assert "Allowed" not in response.text
    assert "service.db" not in response.text
