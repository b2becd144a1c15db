"""The settings of the service: from the command line, the environment and a TOML file, in this order."""

from __future__ import annotations

import ipaddress
import types
import typing
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import platformdirs
from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)
from pydantic_settings import (
    SettingsError as PydanticSettingsError,
)

from latentguard.errors import ServiceError
from latentguard.records import MAX_PROMPT_CHARS
from privacy.errors import PrivacyError
from privacy.files import read_secret

PREFIX = "LATENTGUARD_SERVICE_"
_MAX_SECRET_BYTES = 4096
_MIB = 2**20

Names = Annotated[tuple[str, ...], NoDecode]
Port = Annotated[int, Field(ge=0, le=65535)]


class SettingsError(ServiceError):
    """A setting is unknown or has a value that can't be; the message names it, and never quotes the value."""


class Settings(BaseSettings):
    """What an operator can choose. Everything has a default, with which the service starts on loopback."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True, hide_input_in_errors=True)

    host: str = Field("127.0.0.1", description="the address to listen on; other than loopback needs a key made before")
    port: Port = Field(8443, description="the port of HTTPS; 0 takes a free one")
    http_port: Port = Field(8080, description="the port of HTTP, which only redirects to HTTPS; 0 switches it off")
    allowed_hosts: Names = Field(
        (), description="host names that requests may ask for, `*.` in front for all below; empty allows any"
    )
    trusted_proxies: Names = Field(
        (), description="addresses of reverse proxies whose `X-Forwarded-For` counts; empty believes none"
    )
    data_dir: Path = Field(
        default_factory=lambda: platformdirs.user_data_path("latentguard"),
        description="the folder of database, keys and certificate; only its owner may read it",
    )
    database_url: SecretStr | None = Field(
        None, description="`sqlite:///FILE` or `postgresql://USER@HOST/NAME`; default: SQLite in the data folder"
    )
    database_url_file: Path | None = Field(None, description="a file, readable by its owner alone, that holds the URL")
    master_keys: Path | None = Field(
        None, description="the master keys, in a file; default: `master.keys` in the data folder, made at first start"
    )
    tls_certificate: Path | None = Field(
        None, description="the certificate with its chain, PEM; default: a self-signed one, made at first start"
    )
    tls_key: Path | None = Field(None, description="the certificate's private key, PEM, without a passphrase")
    model: str | None = Field(None, description="the guard's weights: a shipped name, a folder or a hub id")
    concepts: Path | None = Field(None, description="the first bank, `.txt` or `.json`; default: the model's")
    pipeline: str | None = Field(
        None, description="a diffusers pipeline, folder or hub id; without it nothing is drawn"
    )
    classifiers: Names = Field(("mnist",), description="networks for encrypted inference, by name; empty offers none")
    max_batch: int = Field(
        64, ge=1, le=4096, description="prompts in one pass of the encoder, and in one transaction of the audit log"
    )
    screening_threads: int | None = Field(
        None, ge=1, le=256, description="passes of the encoder at once; default: one for each core, with a GPU one"
    )
    batch_wait_ms: float = Field(2.0, ge=0, le=1000, description="how long a prompt waits for others to join it, in ms")
    queue_limit: int = Field(1024, ge=1, le=1_000_000, description="prompts waiting at most; beyond, the answer is 429")
    request_timeout_s: float = Field(30.0, gt=0, le=3600, description="after which a request is given up, in seconds")
    generate_timeout_s: float = Field(
        600.0, gt=0, le=86_400, description="after which a drawing is given up, in seconds"
    )
    body_limit_bytes: int = Field(4 * _MIB, ge=1024, le=1024 * _MIB, description="size of a request's body")
    ciphertext_limit_bytes: int = Field(
        256 * _MIB, ge=1024, le=4096 * _MIB, description="size of a body that holds ciphertexts or their keys"
    )
    max_prompts: int = Field(256, ge=1, le=100_000, description="prompts in one request")
    max_prompt_chars: int = Field(
        10_000, ge=1, le=MAX_PROMPT_CHARS, description="characters of a prompt; the guard takes 100,000 at most"
    )
    rate_limit_per_minute: int = Field(6000, ge=1, le=10_000_000, description="prompts a minute for each key")
    lockout_failures: int = Field(5, ge=1, le=1000, description="wrong secrets for a key until its id is locked")
    lockout_s: float = Field(300.0, ge=1, le=86_400, description="how long a lock-out lasts, in seconds")
    store_prompts: bool = Field(False, description="keep prompts, encrypted in the vault; else only their keyed hash")
    recent_prompts: int = Field(500, ge=0, le=100_000, description="prompts kept in memory for the console's previews")
    audit_retention_days: int | None = Field(
        None, ge=1, le=36_500, description="after which audit entries and stored prompts are deleted; default: never"
    )
    shutdown_grace_s: float = Field(
        30.0, ge=0, le=3600, description="how long shutdown waits for accepted requests, in s"
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments before the environment before the file."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)

    @field_validator("allowed_hosts", "trusted_proxies", "classifiers", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _together(self) -> Settings:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key: give both or neither")
        if self.database_url is not None and self.database_url_file is not None:
            raise ValueError("database_url and database_url_file: give one of them")
        if self.port and self.port == self.http_port:
            raise ValueError("port and http_port: can't be the same")
        if not self.host:
            raise ValueError("host: is empty")
        return self

    @property
    def on_loopback(self) -> bool:
        """Whether nobody outside this machine can connect."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def audit_retention(self) -> timedelta | None:
        """How long audit entries are kept; None for ever."""
        return None if self.audit_retention_days is None else timedelta(days=self.audit_retention_days)

    @property
    def master_keys_file(self) -> Path:
        """Where the master keys lie."""
        return self.master_keys or self.data_dir / "master.keys"

    def database_location(self) -> str:
        """The database's URL, with its password if it has one: not to be logged.

        Raises:
            SettingsError: the file that holds it can't be read, or others may read it.
        """
        if self.database_url is not None:
            return self.database_url.get_secret_value()
        if self.database_url_file is not None:
            try:
                return read_secret(self.database_url_file, _MAX_SECRET_BYTES).decode().strip()
            except (PrivacyError, UnicodeDecodeError) as error:
                what = error if isinstance(error, PrivacyError) else f"{self.database_url_file}: is no text"
                raise SettingsError(f"database_url_file: {what}") from None
        return f"sqlite:///{self.data_dir.absolute() / 'service.db'}"

    def make_data_dir(self) -> Path:
        """The data folder, made with access for its owner alone if it isn't there.

        Raises:
            SettingsError: it can't be made, or is no folder.
        """
        try:
            self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise SettingsError(f"data_dir: {self.data_dir}: {error.strerror or error}") from None
        return self.data_dir


def load_settings(config: Path | None = None, **arguments: Any) -> Settings:
    """The settings from `arguments` (those that aren't None), the environment and the file `config`.

    Raises:
        SettingsError: the file can't be read or is no TOML; a setting is unknown or can't have its value.
    """
    if config is not None and not config.is_file():
        raise SettingsError(f"{config}: no such file")

    class _WithFile(Settings):
        model_config = SettingsConfigDict(toml_file=config)

    given = {name: value for name, value in arguments.items() if value is not None}
    try:
        return _WithFile(**given)
    except ValidationError as error:
        found = error.errors(include_input=False, include_url=False)
        raise SettingsError("settings: " + "; ".join(_described(each) for each in found)) from None
    except PydanticSettingsError:
        raise SettingsError("settings: a variable of the environment has a value that can't be read") from None
    except (ValueError, OSError) as error:  # TOML that isn't any; its message has a place and no content
        raise SettingsError(f"{config}: {str(error).splitlines()[0]}") from None


def settings_table() -> str:
    """The table of docs/service-access.md: each setting with its default and meaning, in Markdown."""
    rows = [
        f"| `{name}` | {_kind(field)} | {_default(field)} | {field.description} |"
        for name, field in Settings.model_fields.items()
    ]
    return "\n".join(["| setting | type | default | what it is |", "|---|---|---|---|", *rows]) + "\n"


def _described(error: ErrorDetails) -> str:
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        message = "is no setting"
    return ": ".join([".".join(str(part) for part in error["loc"])] * bool(error["loc"]) + [message])


def _kind(field: FieldInfo) -> str:
    """The type as somebody who writes a TOML file thinks of it."""
    annotation = field.annotation
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        annotation = next(each for each in typing.get_args(annotation) if each is not type(None))
    names: dict[Any, str] = {
        str: "text",
        SecretStr: "secret text",
        Path: "path",
        int: "whole number",
        float: "number",
        bool: "true or false",
    }
    return names.get(annotation, "list of texts")


def _default(field: FieldInfo) -> str:
    if field.default_factory is not None:
        return "the user's data folder"
    default = field.default
    if default is None:
        return "none"
    if isinstance(default, tuple):
        return "`[" + ", ".join(f'"{each}"' for each in default) + "]`"
    return f"`{str(default).lower()}`" if isinstance(default, bool) else f"`{default}`"
