"""docs/operations.md names metrics and commands that there are."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from latentguard.service.metrics import Metrics
from latentguard.service.settings import Settings

_TEXT = (Path(__file__).parents[2] / "docs" / "operations.md").read_text(encoding="utf-8")


def test_every_metric_is_exposed() -> None:
    exposed = set(re.findall(r"^# HELP (\w+) ", Metrics().exposition().decode(), re.MULTILINE))
    named = {re.sub(r"_bucket$", "", name) for name in re.findall(r"\blatentguard_\w+", _TEXT)}
    assert named == {name for name in exposed if not name.endswith("_created")}


def test_the_rules_are_yaml_with_an_expression_each() -> None:
    (rules,) = re.findall(r"```yaml\n(.*?)```", _TEXT, re.DOTALL)
    (group,) = yaml.safe_load(rules)["groups"]
    assert all(rule["alert"].startswith("Latentguard") and rule["expr"] for rule in group["rules"])


def test_every_setting_is_one() -> None:
    settings = {"max_batch", "screening_threads", "queue_limit", "batch_wait_ms", "audit_retention_days", "lockout_s"}
    settings |= {"request_timeout_s", "shutdown_grace_s", "rate_limit_per_minute", "database_url_file", "master_keys"}
    settings |= {"body_limit_bytes", "ciphertext_limit_bytes"}
    assert settings <= set(Settings.model_fields)
    assert all(f"`{name}`" in _TEXT for name in settings)
