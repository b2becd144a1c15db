from __future__ import annotations

import logging
import os
import shutil
import socket
import ssl
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509

from latentguard.service import tls
from latentguard.service.settings import Settings, load_settings
from latentguard.service.tls import (
    CertificateError,
    CertificateFiles,
    ReloadingContext,
    certificate_files,
    fingerprint,
    is_self_signed,
)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    settings = load_settings(data_dir=tmp_path / "data")
    settings.make_data_dir()
    return settings


@pytest.fixture
def files(settings: Settings) -> CertificateFiles:
    return certificate_files(settings)


def another_pair(tmp_path: Path, host: str = "127.0.0.1") -> CertificateFiles:
    settings = load_settings(data_dir=tmp_path / "another", host=host)
    settings.make_data_dir()
    return certificate_files(settings)


@contextmanager
def serving(context: ssl.SSLContext) -> Iterator[tuple[str, int]]:
    """A server that says what version it speaks."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(20)

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                try:
                    with context.wrap_socket(connection, server_side=True) as secure:
                        secure.sendall(b"hello")
                except OSError:
                    connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield server.getsockname()
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


def greet(
    address: tuple[str, int], trusted: Path, *, name: str | None = "localhost", context: ssl.SSLContext | None = None
) -> str:
    """Connects, with all checks, and returns the certificate's fingerprint."""
    context = context or ssl.create_default_context(cafile=str(trusted))
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    if name is None:
        context.check_hostname = False
    with (
        socket.create_connection(address, timeout=20) as plain,
        context.wrap_socket(plain, server_hostname=name) as secure,
    ):
        assert secure.recv(5) == b"hello"
        certificate = secure.getpeercert(binary_form=True)
    assert certificate is not None
    return x509.load_der_x509_certificate(certificate).fingerprint(tls.SHA256()).hex(":").upper()


def replace(files: CertificateFiles, by: CertificateFiles) -> None:
    for old, new in zip(files, by, strict=True):
        shutil.copy2(new, old.with_suffix(".new"))
        os.replace(old.with_suffix(".new"), old)


def test_the_first_start_makes_a_certificate_that_clients_can_check(files: CertificateFiles) -> None:
    with serving(ReloadingContext(files).context) as address:
        for name in ("localhost", "127.0.0.1", "::1"):
            assert greet(address, files.certificate, name=name) == fingerprint(files.certificate)
        with pytest.raises(ssl.SSLCertVerificationError):
            greet(address, files.certificate, name="elsewhere.example")
    assert is_self_signed(files.certificate)


def test_it_is_kept_and_its_key_is_private(files: CertificateFiles, settings: Settings) -> None:
    before = fingerprint(files.certificate)
    assert certificate_files(settings) == files
    assert fingerprint(files.certificate) == before
    assert stat.S_IMODE(files.key.stat().st_mode) == 0o600
    assert stat.S_IMODE(files.key.parent.stat().st_mode) == 0o700


def test_it_is_made_anew_before_it_ends(
    files: CertificateFiles, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = fingerprint(files.certificate)
    now = tls.utc_now()
    monkeypatch.setattr(tls, "utc_now", lambda: now + timedelta(days=368))
    certificate_files(settings)
    assert fingerprint(files.certificate) != before


def test_it_is_made_anew_for_another_host(files: CertificateFiles, settings: Settings) -> None:
    certificate_files(settings.model_copy(update={"host": "guard.example"}))
    with serving(ReloadingContext(files).context) as address:
        greet(address, files.certificate, name="guard.example")
        greet(address, files.certificate, name="localhost")


@pytest.mark.parametrize("lost", ["certificate", "key"])
def test_a_lost_half_is_made_anew_with_the_other(files: CertificateFiles, settings: Settings, lost: str) -> None:
    getattr(files, lost).unlink()
    certificate_files(settings)
    with serving(ReloadingContext(files).context) as address:
        greet(address, files.certificate)


def test_a_certificate_is_exchanged_without_a_restart(files: CertificateFiles, tmp_path: Path) -> None:
    newer = another_pair(tmp_path)
    with serving(ReloadingContext(files).context) as address:
        assert greet(address, files.certificate) == fingerprint(files.certificate)
        replace(files, newer)
        assert greet(address, newer.certificate) == fingerprint(newer.certificate)
        assert greet(address, newer.certificate, name=None) == fingerprint(newer.certificate)


def test_half_an_exchange_leaves_the_old_pair_in_force(
    files: CertificateFiles, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    newer, trusted = another_pair(tmp_path), tmp_path / "old.pem"
    shutil.copy(files.certificate, trusted)
    with serving(ReloadingContext(files).context) as address, caplog.at_level(logging.INFO):
        shutil.copy(newer.certificate, files.certificate)
        assert greet(address, trusted) == fingerprint(trusted)
        assert "the one before stays" in caplog.text
        files.key.unlink()
        assert greet(address, trusted) == fingerprint(trusted)
        shutil.copy2(newer.key, files.key)
        assert greet(address, newer.certificate) == fingerprint(newer.certificate)
        assert "was exchanged" in caplog.text


def test_nothing_older_than_tls_1_2_is_spoken(files: CertificateFiles) -> None:
    served = ReloadingContext(files)
    assert served.context.minimum_version == served._current.minimum_version == ssl.TLSVersion.TLSv1_2
    with serving(served.context) as address:
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            context = ssl.create_default_context(cafile=str(files.certificate))
            context.minimum_version = context.maximum_version = version
            greet(address, files.certificate, context=context)
        old = ssl.create_default_context(cafile=str(files.certificate))
        old.set_ciphers("DEFAULT:@SECLEVEL=0")
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises(OSError):  # noqa: PT011  (of ssl or of the connection, as the library pleases)
            greet(address, files.certificate, context=old)


def test_files_of_the_operators_own_are_used(tmp_path: Path, settings: Settings) -> None:
    own = another_pair(tmp_path, "guard.example")
    chosen = settings.model_copy(update={"tls_certificate": own.certificate, "tls_key": own.key})
    assert certificate_files(chosen) == own
    assert not (settings.data_dir / "tls").exists()


def test_files_of_no_use_are_told_and_never_replaced(tmp_path: Path, settings: Settings) -> None:
    own = another_pair(tmp_path)
    chosen = settings.model_copy(update={"tls_certificate": own.certificate, "tls_key": own.key})
    own.key.chmod(0o604)
    with pytest.raises(CertificateError, match="everybody"):
        certificate_files(chosen)
    own.key.chmod(0o640)
    assert certificate_files(chosen) == own
    own.certificate.write_text("no certificate")
    with pytest.raises(CertificateError, match="PEM"):
        certificate_files(chosen)
    own.certificate.unlink()
    with pytest.raises(CertificateError, match="can't be read"):
        certificate_files(chosen)
    assert not own.certificate.exists()


def test_a_key_with_a_passphrase_is_refused_without_asking_for_it(tmp_path: Path, settings: Settings) -> None:
    from cryptography.hazmat.primitives.serialization import (
        BestAvailableEncryption,
        Encoding,
        PrivateFormat,
        load_pem_private_key,
    )

    own = another_pair(tmp_path)
    key = load_pem_private_key(own.key.read_bytes(), None)
    own.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"passphrase")))
    with pytest.raises(CertificateError):
        certificate_files(settings.model_copy(update={"tls_certificate": own.certificate, "tls_key": own.key}))
