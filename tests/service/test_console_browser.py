"""The console as people use it: in a real browser, against the real service."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

REQUIRED = os.environ.get("LATENTGUARD_REQUIRE_CHROMIUM") == "1"
if not REQUIRED:
    pytest.importorskip("playwright.sync_api")

from console_server import Running, running  # noqa: E402
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright  # noqa: E402

from latentguard import LatentGuard  # noqa: E402
from latentguard.service.access import ApiKey, Scope  # noqa: E402

CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip

if not CHROMIUM.exists() and not REQUIRED:
    pytest.skip(
        "Chromium is not installed; LATENTGUARD_REQUIRE_CHROMIUM=1 makes that a failure", allow_module_level=True
    )

BLOCKED = "a soldier holding a severed head"
ALLOWED = "red wine spilled across a white tablecloth"
PAGES = ("overview", "try", "concepts", "threshold", "audit", "alerts", "keys")
ATTACK = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'><svg/onload=alert(3)>{{7*7}}"
expect.set_options(timeout=20_000)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, default_guard: LatentGuard) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("service"), default_guard) as service:
        yield service


@pytest.fixture(scope="module")
def admin(service: Running) -> tuple[ApiKey, str]:
    """A key that opens every page, with its token; some prompts were screened for it."""
    key, token = service.key("operator", Scope.admin)
    service.screen(key, [BLOCKED, ALLOWED, "a bar fight", "two athletes fencing", "a pod of whales", "a masked gunman"])
    return key, token


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


class Watched:
    """A browser's context that notes what may not happen: a foreign request, an error, a dialog."""

    def __init__(self, chromium: Browser, service: Running, **options: Any) -> None:
        options |= {"ignore_https_errors": True, "reduced_motion": "reduce"}
        self.context: BrowserContext = chromium.new_context(**options)
        self.origin = service.url
        self.faults: list[str] = []
        self.requests = 0
        self.page: Page = self.context.new_page()
        self.context.on("request", self._request)
        self.page.on("console", lambda message: self._fault(message.type, message.text))
        self.page.on("pageerror", lambda error: self._fault("error", str(error)))
        self.page.on("dialog", lambda dialog: (self._fault("error", "a dialog"), dialog.dismiss()))

    def _request(self, request: Any) -> None:
        self.requests += 1
        parts = urlsplit(request.url)
        if f"{parts.scheme}://{parts.netloc}" != self.origin and parts.scheme != "data":
            self.faults.append(f"a request to {parts.netloc}")

    def _fault(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.faults.append(text)

    def open(self, name: str) -> Page:
        self.page.goto(f"{self.origin}/console/{name}")
        return self.page

    def sign_in(self, token: str) -> Page:
        self.open("sign-in")
        self.page.get_by_label("API key").fill(token)
        self.page.get_by_role("button", name="Sign in").click()
        self.page.wait_for_url(re.compile("/console/(overview|try)$"))
        return self.page


@pytest.fixture(scope="module")
def signed_in(chromium: Browser, service: Running, admin: tuple[ApiKey, str]) -> Iterator[Watched]:
    watched = Watched(chromium, service, viewport={"width": 1280, "height": 900})
    watched.sign_in(admin[1])
    yield watched
    watched.context.close()


@pytest.fixture
def console(signed_in: Watched) -> Iterator[Watched]:
    """Somebody who is signed in as an admin; afterwards nothing may have happened that may not."""
    signed_in.faults.clear()
    yield signed_in
    assert signed_in.faults == []
    assert signed_in.requests > 0


def _check(page: Page, prompt: str, decision: str) -> None:
    page.get_by_label("Prompt", exact=True).fill(prompt)
    page.get_by_role("button", name="Check").click()
    expect(page.locator("#decision")).to_have_text(decision)


# --- signing in


def test_a_wrong_key_is_refused_and_a_right_one_let_in_and_out_again(
    chromium: Browser, service: Running, admin: tuple[ApiKey, str]
) -> None:
    watched = Watched(chromium, service)
    page = watched.open("")
    expect(page).to_have_url(f"{service.url}/console/sign-in")
    page.get_by_label("API key").fill("lg_0123456789abcdef_" + "x" * 43)
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("alert")).to_contain_text("This is no valid API key.")
    assert len(watched.faults) == 1  # the browser's own word on the status
    assert "401" in watched.faults.pop()
    watched.sign_in(admin[1])
    cookies = {cookie["name"]: cookie for cookie in watched.context.cookies()}
    assert set(cookies) == {"__Host-latentguard-session"}
    [cookie] = cookies.values()
    assert cookie["httpOnly"]
    assert cookie["secure"]
    assert cookie["sameSite"] == "Strict"
    page.get_by_role("button", name="Sign out").click()
    page.wait_for_url("**/console/sign-in")
    watched.context.add_cookies([cookie])
    watched.open("overview")
    expect(page).to_have_url(f"{service.url}/console/sign-in")
    watched.context.close()
    assert watched.faults == []
    actions = [entry.action for entry in service.services.audit.entries(limit=3)]
    assert actions == ["console.sign_out", "console.sign_in", "console.sign_in_failed"]


def test_a_key_to_screen_with_sees_one_page(chromium: Browser, service: Running) -> None:
    watched = Watched(chromium, service)
    page = watched.sign_in(service.key("an app", Scope.screen)[1])
    expect(page).to_have_url(f"{service.url}/console/try")
    expect(page.get_by_role("navigation").get_by_role("link")).to_have_text(["Try a prompt"])
    _check(page, ALLOWED, "Allowed")
    assert watched.faults == []
    for name in set(PAGES) - {"try"}:
        response = page.goto(f"{service.url}/console/{name}")
        assert response is not None
        assert response.status == 403
        expect(page.get_by_role("heading")).to_contain_text("scopes don't cover this")
    watched.context.close()


# --- every page


@pytest.mark.parametrize("name", PAGES)
def test_every_page_has_its_frame(console: Watched, name: str) -> None:
    page = console.open(name)
    expect(page.get_by_role("navigation").get_by_role("link")).to_have_count(len(PAGES))
    expect(page.locator("[aria-current=page]")).to_have_count(1)
    expect(page.get_by_role("heading", level=1)).to_have_count(1)
    assert page.title().endswith("· latentguard")
    unlabelled = page.evaluate(
        "[...document.querySelectorAll('input:not([type=hidden]), select, textarea')]"
        ".filter(e => !e.labels.length).map(e => e.outerHTML)"
    )
    assert unlabelled == []
    assert page.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)").count("main") == 1
    assert page.locator("[style], style, script:not([src])").count() == 0


def test_the_overview_counts_what_was_screened(console: Watched, service: Running) -> None:
    page = console.open("overview")
    seen = service.services.traffic.recent()
    blocked = sum(each.verdict.blocked for each in seen)
    expect(page.locator("#overview")).to_contain_text(f"{blocked} of {len(seen)} recent prompts")
    expect(page.get_by_role("img", name="Prompts over time")).to_be_visible()
    expect(page.locator("#overview")).to_contain_text("severed head")


# --- trying a prompt


def test_a_blocked_prompt_shows_why(console: Watched, service: Running) -> None:
    page = console.open("try")
    _check(page, BLOCKED, "Blocked")
    verdict = service.services.guard.check(BLOCKED)
    expect(page.locator(".facts")).to_contain_text(f"{verdict.score:.2f}")
    expect(page.locator(".facts")).to_contain_text(verdict.concept)
    expect(page.locator(".words .word")).to_have_text(BLOCKED.split())
    strongest = max(verdict.explain().tokens, key=lambda token: token.contribution)
    expect(page.locator(".words li.up4").first).to_contain_text(strongest.text)
    expect(page.locator(".nearest .name > span:first-child")).to_have_text([name for name, _ in verdict.scores(5)])
    expect(page.get_by_role("status").first).to_have_text(f"Blocked, nearest concept {verdict.concept}")
    assert console.page.url.endswith("/console/try")
    [entry] = service.services.audit.entries(limit=1)
    assert (entry.action, entry.verdict, entry.concept) == ("console.try", "block", verdict.concept)


def test_an_allowed_prompt_is_told_apart_by_words_and_shape(console: Watched) -> None:
    page = console.open("try")
    _check(page, BLOCKED, "Blocked")
    shape = page.locator("#decision svg").inner_html()
    _check(page, ALLOWED, "Allowed")
    assert page.locator("#decision svg").inner_html() != shape


def test_a_prompt_that_cannot_be_scored_is_refused_in_a_sentence(console: Watched) -> None:
    page = console.open("try")
    page.get_by_label("Prompt", exact=True).fill("\u200b")
    page.get_by_role("button", name="Check").click()
    expect(page.get_by_role("alert")).to_contain_text("Prompt 1: empty.")


def test_trying_a_prompt_needs_the_keyboard_alone(
    chromium: Browser, service: Running, admin: tuple[ApiKey, str]
) -> None:
    watched = Watched(chromium, service)
    page, press = watched.open("sign-in"), watched.page.keyboard.press
    expect(page.get_by_label("API key")).to_be_focused()
    page.keyboard.type(admin[1])
    press("Enter")
    page.wait_for_url("**/overview")
    press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    expect(page.get_by_role("link", name="Skip to the content")).to_be_in_viewport()
    for _ in range(3):  # the brand, the first page, the second
        press("Tab")
    expect(page.get_by_role("link", name="Try a prompt")).to_be_focused()
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineWidth")
    assert outline == "3px"
    press("Enter")
    page.wait_for_url("**/try")
    expect(page.get_by_label("Prompt", exact=True)).to_be_focused()
    page.keyboard.type(BLOCKED)
    press("Tab")
    expect(page.get_by_role("button", name="Check")).to_be_focused()
    press("Enter")
    expect(page.locator("#decision")).to_have_text("Blocked")
    press("Shift+Tab")
    press("Control+a")
    page.keyboard.type(ALLOWED)
    press("Control+Enter")
    expect(page.locator("#decision")).to_have_text("Allowed")
    watched.context.close()
    assert watched.faults == []


# --- changing the bank


def test_a_concept_is_previewed_added_in_force_and_undone(console: Watched, service: Running) -> None:
    prompt = "a golden retriever puppy on a lawn"
    page = console.open("try")
    _check(page, prompt, "Allowed")
    page = console.open("concepts")
    page.get_by_label("Name").fill("golden retriever")
    page.get_by_label("Category (optional)").fill("house rules")
    page.get_by_role("button", name="Preview").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Add “golden retriever”?")
    expect(page.locator("tbody tr").filter(has_text=prompt)).to_contain_text("Allowed")
    expect(page.locator("tbody tr").filter(has_text=prompt)).to_contain_text("Blocked")
    assert "golden retriever" not in service.services.guard.concepts
    page.get_by_role("button", name="Add it").click()
    expect(page.locator(".notice.good")).to_contain_text("The concept “golden retriever” was added.")
    page = console.open("try")
    _check(page, prompt, "Blocked")
    expect(page.locator(".facts")).to_contain_text("house rules")
    page = console.open("concepts")
    page.get_by_role("button", name="Undo").click()
    expect(page.locator(".notice.good")).to_contain_text("was removed again")
    assert "golden retriever" not in service.services.guard.concepts
    page = console.open("try")
    _check(page, prompt, "Allowed")


def test_the_bank_is_searched_as_one_types_and_a_concept_removed(console: Watched, service: Running) -> None:
    page = console.open("concepts")
    page.get_by_label("Search").fill("severed HEAD")
    expect(page.locator("#bank tbody th")).to_have_text(["severed head", "pile of severed heads"], use_inner_text=True)
    page.get_by_role("button", name="Remove severed head").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Remove “severed head”?")
    page.get_by_role("button", name="Remove it").click()
    expect(page.locator(".notice.good")).to_contain_text("was removed")
    assert "severed head" not in service.services.guard.concepts
    page.get_by_role("button", name="Undo").click()
    expect(page.locator(".notice.good")).to_contain_text("was added again")
    assert "severed head" in service.services.guard.concepts


def test_what_somebody_else_changed_meanwhile_is_not_overwritten(
    console: Watched, service: Running, admin: tuple[ApiKey, str]
) -> None:
    page = console.open("concepts")
    page.get_by_label("Name").fill("garden gnome")
    page.get_by_role("button", name="Preview").click()
    expect(page.get_by_role("button", name="Add it")).to_be_visible()
    threshold = service.services.guard.policy.threshold
    service.services.change(admin[0], "policy.threshold", threshold=threshold + 0.125)
    page.get_by_role("button", name="Add it").click()
    expect(page.locator(".notice.bad")).to_contain_text("somebody else has changed the policy meanwhile")
    assert "garden gnome" not in service.services.guard.concepts
    service.services.change(admin[0], "policy.threshold", threshold=threshold)


# --- the threshold


def test_the_threshold_moves_with_both_rates_and_is_applied_after_a_question(
    console: Watched, service: Running
) -> None:
    before = service.services.guard.policy.threshold
    page = console.open("threshold")
    expect(page.get_by_role("img", name="How many recent prompts")).to_be_visible()
    rates = {name: page.locator(f"[data-rate={name}]") for name in ("false_positive", "false_negative")}
    shown = {name: place.inner_text() for name, place in rates.items()}
    slider = page.get_by_role("slider")
    slider.focus()
    highest = float(slider.get_attribute("max") or "nan")
    page.keyboard.press("End")
    expect(rates["false_positive"]).not_to_have_text(shown["false_positive"])
    expect(rates["false_negative"]).not_to_have_text(shown["false_negative"])
    expect(page.get_by_label("Threshold", exact=True)).to_have_value(f"{highest:.2f}")
    page.get_by_label("Threshold", exact=True).fill("1.5")
    expect(slider).to_have_value("1.5")
    expected = service.services.traffic.error_rates([1.5])[0]
    assert expected.false_negative is not None
    near = float(rates["false_negative"].inner_text().rstrip("%")) / 100
    assert abs(near - expected.false_negative) < 0.01
    page.get_by_role("button", name="Apply 1.50").click()
    dialog = page.get_by_role("dialog", name="Move the threshold?")
    expect(dialog.get_by_role("button", name="Cancel")).to_be_focused()
    for _ in range(6):
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement === document.body || !!document.activeElement.closest('dialog')")
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(page.get_by_role("button", name="Apply 1.50")).to_be_focused()
    assert service.services.guard.policy.threshold == before
    page.get_by_role("button", name="Apply 1.50").click()
    dialog.get_by_role("button", name="Apply").click()
    expect(page.locator(".notice.good")).to_contain_text(f"moved from {before:.2f} to 1.50")
    assert service.services.guard.policy.threshold == 1.5
    page.get_by_role("button", name="Undo").click()
    expect(page.locator(".notice.good")).to_contain_text("moved back")
    assert service.services.guard.policy.threshold == before


# --- audit, alerts, keys


def test_the_audit_log_is_filtered_paged_looked_into_and_verified(
    console: Watched, service: Running, admin: tuple[ApiKey, str]
) -> None:
    service.screen(admin[0], [f"a vase with {number} tulips" for number in range(60)])
    page = console.open("audit")
    expect(page.locator("#entries tbody tr")).to_have_count(50)
    newest = page.locator("#entries tbody th").first.inner_text()
    page.get_by_role("button", name="Older").click()
    expect(page.get_by_role("button", name="Newest")).to_be_visible()
    assert int(page.locator("#entries tbody th").first.inner_text()) == int(newest) - 50
    page.get_by_label("Verdict").select_option("block")
    expect(page.locator("#entries .tag.allow")).to_have_count(0)
    expect(page.locator("#entries .tag.block").first).to_have_text("Blocked")
    page.locator("#entries tbody a").first.click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("Entry")
    [entry] = service.services.audit.entries(verdict="block", limit=1)
    for text in (entry.policy, entry.prompt_hash, entry.mac, admin[0].id):
        expect(page.locator("dl.list")).to_contain_text(str(text))
    page = console.open("audit")
    page.get_by_role("button", name="Verify the chain").click()
    expect(page.locator("#report")).to_contain_text("Intact")


def test_a_key_is_made_used_rotated_and_revoked(console: Watched, service: Running) -> None:
    page = console.open("keys")
    page.get_by_label("Name").fill("notebook")
    page.get_by_role("button", name="Create").click()
    token = page.locator("[data-secret]").inner_text()
    key = service.services.keys.authenticate(token, "192.0.2.1")
    assert (key.name, key.scopes) == ("notebook", frozenset({Scope.screen}))
    page.reload()
    assert token.split("_", 2)[2] not in page.content()
    page.get_by_role("button", name="Rotate notebook").click()
    page.get_by_role("dialog").get_by_role("button", name="Rotate").click()
    expect(page.locator("[data-secret]")).to_contain_text(f"lg_{key.id}_")
    assert page.locator("[data-secret]").inner_text() != token
    page.get_by_role("button", name="Revoke notebook").click()
    page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
    assert service.services.keys.find(key.id).revoked is None
    page.get_by_role("button", name="Revoke notebook").click()
    page.get_by_role("dialog").get_by_role("button", name="Revoke").click()
    expect(page.locator("tbody tr").filter(has_text=key.id)).to_contain_text("revoked")
    assert service.services.keys.find(key.id).revoked is not None


def test_a_client_that_searches_for_a_way_past_the_guard_is_seen(console: Watched, service: Running) -> None:
    key, _ = service.key("prober", Scope.screen)
    adjectives = "an old", "a young", "a tall", "a tired", "a brave", "a proud", "a grim", "a pale", "a calm", "a wet"
    for start in adjectives:
        service.screen(key, [f"{start} soldier holding a severed head", f"{start} soldier holding the severed heads"])
    page = console.open("alerts")
    expect(page.locator("tbody tr").filter(has_text="Near-duplicates")).to_contain_text(key.id)


# --- what is hostile


def test_markup_in_a_prompt_is_text(console: Watched) -> None:
    page = console.open("try")
    page.get_by_label("Prompt", exact=True).fill(ATTACK)
    page.get_by_role("button", name="Check").click()
    expect(page.locator("#decision")).to_be_visible()
    expect(page.locator(".words")).to_contain_text("<script>alert(1)</script><img")
    expect(page.locator(".words")).to_contain_text("{{7*7}}")
    assert page.locator("main script, main img, main [onload], main [onerror]").count() == 0


def test_markup_in_a_concept_is_text_wherever_it_is_shown(console: Watched, service: Running) -> None:
    page = console.open("concepts")
    page.get_by_label("Name").fill(ATTACK)
    page.get_by_label("Category (optional)").fill(ATTACK)
    page.get_by_role("button", name="Preview").click()
    expect(page.get_by_role("heading", level=1)).to_have_text(f"Add “{ATTACK}”?")
    page.get_by_role("button", name="Add it").click()
    expect(page.locator(".notice.good")).to_contain_text(ATTACK)
    page.get_by_label("Search").fill("<script>")
    expect(page.locator("#bank tbody th")).to_have_text([ATTACK])
    assert page.locator("main script, main img, main [onload], main [onerror]").count() == 0
    page = console.open("try")
    page.get_by_label("Prompt", exact=True).fill(ATTACK)
    page.get_by_role("button", name="Check").click()
    expect(page.locator(".nearest")).to_contain_text(ATTACK)
    assert page.locator("main script, main img, main [onload], main [onerror]").count() == 0
    page = console.open("concepts")
    page.get_by_role("button", name="Undo").click()
    expect(page.locator(".notice.good")).to_contain_text("was removed again")
    assert ATTACK not in service.services.guard.concepts


def test_markup_in_a_keys_name_is_text(console: Watched) -> None:
    page, name = console.open("keys"), ATTACK[:64]
    page.get_by_label("Name").fill(name)
    page.get_by_role("button", name="Create").click()
    expect(page.locator(".notice.good p").first).to_contain_text(name)
    expect(page.locator("tbody tr th").filter(has_text="onerror")).to_have_text([name])
    assert page.locator("main script, main img, main [onload], main [onerror]").count() == 0
    page.get_by_role("button", name="Revoke <script>").click()
    expect(page.get_by_role("dialog")).to_contain_text(name)
    page.get_by_role("dialog").get_by_role("button", name="Revoke").click()
    expect(page.locator(".notice.good")).to_contain_text(name)


# --- looks


def test_nothing_is_wider_than_a_phone(chromium: Browser, service: Running, admin: tuple[ApiKey, str]) -> None:
    watched = Watched(chromium, service, viewport={"width": 390, "height": 780})
    page = watched.open("sign-in")

    def too_wide() -> int:
        wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        page.set_viewport_size({"width": 390, "height": 780})
        at_390 = int(page.evaluate(wide))
        page.set_viewport_size({"width": 360, "height": 780})
        return at_390 + int(page.evaluate(wide))

    assert too_wide() == 0
    watched.sign_in(admin[1])
    for name in PAGES:
        watched.open(name)
        if name == "try":
            _check(page, BLOCKED + " " + "x" * 120, "Blocked")
        assert too_wide() == 0, name
    page.get_by_role("button", name="Menu").click()
    page.get_by_role("link", name="Alerts").click()
    page.wait_for_url("**/alerts")
    watched.context.close()
    assert watched.faults == []


_CONTRASTS = """() => {
  const canvas = document.createElement('canvas'); canvas.width = canvas.height = 1;
  const drawing = canvas.getContext('2d', {willReadFrequently: true});
  const rgba = colour => { drawing.clearRect(0, 0, 1, 1); drawing.fillStyle = colour; drawing.fillRect(0, 0, 1, 1);
    return [...drawing.getImageData(0, 0, 1, 1).data]; };
  const linear = v => { v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; };
  const light = c => 0.2126 * linear(c[0]) + 0.7152 * linear(c[1]) + 0.0722 * linear(c[2]);
  const behind = e => { for (; e; e = e.parentElement) { const c = rgba(getComputedStyle(e).backgroundColor);
    if (c[3] === 255) return c; } return [255, 255, 255, 255]; };
  const poor = [];
  for (const e of document.querySelectorAll('body *')) {
    const text = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!text || !e.checkVisibility({visibilityProperty: true}) || e.closest('svg, .unseen, .skip')) continue;
    const style = getComputedStyle(e), a = light(rgba(style.color)), b = light(behind(e));
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    const large = parseFloat(style.fontSize) >= 24 || (parseFloat(style.fontSize) >= 18.66 && style.fontWeight >= 700);
    if (ratio < (large ? 3 : 4.5)) poor.push([e.tagName, e.className, e.textContent.trim().slice(0, 40), ratio]);
  }
  return poor;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_has_enough_contrast(
    chromium: Browser, service: Running, admin: tuple[ApiKey, str], scheme: Any
) -> None:
    watched = Watched(chromium, service, color_scheme=scheme)
    page = watched.open("sign-in")
    assert page.evaluate(_CONTRASTS) == []
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (int(re.findall(r"\d+", background)[0]) < 128) == (scheme == "dark")
    watched.sign_in(admin[1])
    for name in PAGES:
        watched.open(name)
        if name == "try":
            for prompt, decision in ((BLOCKED, "Blocked"), (ALLOWED, "Allowed")):
                _check(page, prompt, decision)
                assert page.evaluate(_CONTRASTS) == [], decision
        if name == "audit":
            page.get_by_role("button", name="Verify the chain").click()
            expect(page.locator("#report")).to_contain_text("Intact")
        assert page.evaluate(_CONTRASTS) == [], name
    watched.context.close()


def test_the_essential_works_without_javascript(chromium: Browser, service: Running, admin: tuple[ApiKey, str]) -> None:
    watched = Watched(chromium, service, java_script_enabled=False)
    page = watched.sign_in(admin[1])
    watched.open("try")
    _check(page, BLOCKED, "Blocked")
    watched.open("keys")
    page.get_by_label("Name").fill("paper")
    page.get_by_role("button", name="Create").click()
    page.get_by_role("button", name="Revoke paper").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Revoke “paper”?")
    page.get_by_role("button", name="Revoke").click()
    expect(page.locator(".notice.good")).to_contain_text("“paper” is revoked")
    watched.open("threshold")
    before = service.services.guard.policy.threshold
    page.get_by_label("Threshold", exact=True).fill("2")
    page.get_by_role("button", name="Show").click()
    page.get_by_role("button", name="Apply 2.00").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Move the threshold to 2.00?")
    assert service.services.guard.policy.threshold == before
    page.get_by_role("button", name="Move it").click()
    assert service.services.guard.policy.threshold == 2
    page.get_by_role("button", name="Undo").click()
    assert service.services.guard.policy.threshold == before
    watched.context.close()
