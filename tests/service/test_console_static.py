"""The console's files: vendored parts are the published ones, pages hold nothing that the policy forbids."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest

import latentguard.service.console.assets
from latentguard.service.console.assets import read_assets

_CONSOLE = Path(latentguard.service.console.assets.__file__).parent
_VENDOR = _CONSOLE / "static" / "vendor"
_TEMPLATES = sorted((_CONSOLE / "templates").glob("*.html"))
_ROW = re.compile(r"\| \[(?P<name>\S+)\]\(\S+\) \| \S+ \| \S+ \| `(?P<file>\S+)` \| `(?P<sum>[0-9a-f]{64})` \|")


def test_vendored_files_are_those_that_were_published() -> None:
    rows = list(_ROW.finditer((_VENDOR / "README.md").read_text()))
    assert {row["file"] for row in rows} == {path.relative_to(_VENDOR).as_posix() for path in _VENDOR.rglob("*.min.*")}
    for row in rows:
        assert hashlib.sha256((_VENDOR / row["file"]).read_bytes()).hexdigest() == row["sum"]


def test_every_vendored_part_has_its_licence_beside_it() -> None:
    for path in _VENDOR.rglob("*.min.*"):
        assert list(path.parent.glob("LICENSE*")), path.parent


def test_all_static_files_together_are_small() -> None:
    assert sum(len(asset.content) for asset in read_assets().values()) < 300_000


def test_static_files_are_known_by_their_content() -> None:
    assets = read_assets()
    assert {"console.css", "console.js", "icon.svg", "vendor/htmx/htmx.min.js"} <= assets.keys()
    assert assets["console.css"].version == hashlib.sha256(assets["console.css"].content).hexdigest()[:12]
    assert assets["console.css"].media_type.startswith("text/css")


@pytest.mark.parametrize("template", _TEMPLATES, ids=lambda path: path.stem)
def test_a_template_has_nothing_inline_and_nothing_external(template: Path) -> None:
    text = template.read_text()
    assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:", text)
    assert all("src=" in script for script in re.findall(r"<script[^>]*>", text))
    assert not re.search(r"(?:src|href|action|data-hx-(?:get|post))=\"(?:https?:)?//", text)


@pytest.mark.parametrize("template", _TEMPLATES, ids=lambda path: path.stem)
def test_a_form_that_changes_something_carries_the_sessions_token(template: Path) -> None:
    for form in re.findall(r"<form method=\"post\".*?</form>", template.read_text(), re.DOTALL):
        assert "{{ csrf() }}" in form


def test_only_the_icons_own_shapes_are_trusted_as_markup() -> None:
    trusting = [path.name for path in _TEMPLATES if re.search(r"\|\s*safe|autoescape", path.read_text())]
    assert trusting == ["icons.html"]
