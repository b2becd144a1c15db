from __future__ import annotations

import re
import stat
from datetime import timedelta
from pathlib import Path

import pytest

from latentguard.service.settings import PREFIX, Settings, SettingsError, load_settings, settings_table

DOCS = Path(__file__).parents[2] / "docs" / "service-access.md"


def test_nothing_has_to_be_set() -> None:
    settings = load_settings()
    assert (settings.host, settings.port, settings.http_port) == ("127.0.0.1", 8443, 8080)
    assert settings.on_loopback
    assert not settings.store_prompts
    assert settings.database_location() == f"sqlite:///{settings.data_dir}/service.db"


def test_arguments_count_before_the_environment_before_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "service.toml"
    config.write_text('port = 1\nmax_batch = 1\nmax_prompts = 1\nclassifiers = ["a", "b"]\n')
    monkeypatch.setenv(f"{PREFIX}PORT", "2")
    monkeypatch.setenv(f"{PREFIX}MAX_BATCH", "2")
    monkeypatch.setenv(f"{PREFIX}ALLOWED_HOSTS", "one.example, *.two.example")
    settings = load_settings(config, port=3, max_batch=None)
    assert (settings.port, settings.max_batch, settings.max_prompts) == (3, 2, 1)
    assert settings.classifiers == ("a", "b")
    assert settings.allowed_hosts == ("one.example", "*.two.example")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prt = 1", "prt: is no setting"),
        ("port = 70000", "port"),
        ('port = "no number 5ecret"', "port"),
        ("port = 80\nhttp_port = 80", "the same"),
        ('tls_key = "key.pem"', "both or neither"),
        ('database_url = "sqlite:///5ecret"\ndatabase_url_file = "x"', "one of them"),
        ("port = = 1", "line 1"),
        ("max_prompt_chars = 100001", "max_prompt_chars"),
        ('host = ""', "host"),
    ],
)
def test_a_mistake_is_told_in_one_line_that_quotes_no_value(tmp_path: Path, text: str, message: str) -> None:
    config = tmp_path / "service.toml"
    config.write_text(text)
    with pytest.raises(SettingsError, match=message) as error:
        load_settings(config)
    assert "\n" not in str(error.value)
    assert "5ecret" not in str(error.value)


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no such file"):
        load_settings(tmp_path / "service.toml")


def test_a_password_is_shown_nowhere(tmp_path: Path) -> None:
    url = "postgresql://service:hunter2@127.0.0.1/name"
    settings = load_settings(database_url=url)
    assert settings.database_location() == url
    assert "hunter2" not in f"{settings!r} {settings} {settings.model_dump()} {settings.model_dump_json()}"


def test_a_secret_may_be_in_a_file_of_its_own_that_others_cannot_read(tmp_path: Path) -> None:
    secret = tmp_path / "url"
    secret.write_text("sqlite:////somewhere/service.db\n")
    secret.chmod(0o644)
    settings = load_settings(database_url_file=secret)
    with pytest.raises(SettingsError, match="other users"):
        settings.database_location()
    secret.chmod(0o600)
    assert settings.database_location() == "sqlite:////somewhere/service.db"


def test_the_data_folder_is_its_owners_alone(tmp_path: Path) -> None:
    folder = load_settings(data_dir=tmp_path / "a" / "b").make_data_dir()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match="data_dir"):
        load_settings(data_dir=tmp_path / "file").make_data_dir()


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.0.2.1", False),
        ("localhost.example", False),
        ("127.0.0.1.example", False),
    ],
)
def test_what_is_loopback(host: str, loopback: bool) -> None:
    assert load_settings(host=host).on_loopback is loopback


def test_retention_is_in_days() -> None:
    assert load_settings().audit_retention is None
    assert load_settings(audit_retention_days=30).audit_retention == timedelta(days=30)


def test_settings_do_not_change_while_the_service_runs() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_settings().port = 1


def test_every_setting_is_described_in_the_documentation() -> None:
    assert all(field.description for field in Settings.model_fields.values())
    table = re.search(r"^\| setting .*?\n(?!\|)", DOCS.read_text() + "\n", re.DOTALL | re.MULTILINE)
    assert table is not None
    assert table[0] == settings_table(), (
        'python -c "from latentguard.service.settings import *; print(settings_table())"'
    )
