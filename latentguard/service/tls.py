"""Transport security: the self-signed certificate of the first start, and certificates exchanged while serving."""

from __future__ import annotations

import ipaddress
import logging
import os
import ssl
import threading
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from filelock import FileLock

from latentguard.errors import ServiceError
from latentguard.service.database import utc_now
from latentguard.service.settings import Settings
from privacy.errors import PrivacyError
from privacy.files import OWNER_ONLY, write_secret

_LOG = logging.getLogger(__name__)

_LIFE = timedelta(days=397)
_RENEWED_BEFORE = timedelta(days=30)
_BACKDATED = timedelta(hours=1)


class CertificateError(ServiceError):
    """A certificate or its key can't be read or made, don't belong together, or the key is readable by everybody."""


class CertificateFiles(NamedTuple):
    """Where a certificate, with its chain, and its private key lie, both PEM."""

    certificate: Path
    key: Path


def certificate_files(settings: Settings) -> CertificateFiles:
    """The files to serve with: those of the settings; or a self-signed certificate in the data folder, which is made
    if it isn't there, and anew if it ends within 30 days or doesn't hold for the host of the settings.

    Raises:
        CertificateError: they can't be used or made.
    """
    if settings.tls_certificate is not None and settings.tls_key is not None:
        files = CertificateFiles(settings.tls_certificate, settings.tls_key)
    else:
        folder = settings.data_dir / "tls"
        files = CertificateFiles(folder / "certificate.pem", folder / "key.pem")
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            with FileLock(folder / "lock", mode=OWNER_ONLY):
                if not _serves(files, settings.host):
                    _make_self_signed(files, settings.host)
        except (OSError, PrivacyError) as error:
            raise CertificateError(f"the self-signed certificate can't be made: {error}") from None
    _loaded(files)
    return files


def fingerprint(certificate: Path) -> str:
    """The SHA-256 digest of a certificate, as browsers and `openssl x509 -fingerprint -sha256` show it."""
    return _read(certificate).fingerprint(SHA256()).hex(":").upper()


def is_self_signed(certificate: Path) -> bool:
    """Whether nobody but itself vouches for a certificate."""
    found = _read(certificate)
    return found.issuer == found.subject


class ReloadingContext:
    """A TLS context for a server, whose certificate is read anew when its files change.

    Each handshake looks at the files' times. Certificate and key are exchanged together: a handshake gets the old pair
    as long as the new one isn't whole, which is logged. TLS 1.2 is the oldest version it speaks.

    Raises:
        CertificateError: the files can't be used at the start.
    """

    def __init__(self, files: CertificateFiles) -> None:
        self._files = files
        self._lock = threading.Lock()
        self._seen = _state(files)
        self._current = _loaded(files)
        self.context = _loaded(files)
        self.context.sni_callback = self._choose

    def _choose(self, connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        connection.context = self._newest()

    def _newest(self) -> ssl.SSLContext:
        with self._lock:
            state = _state(self._files)
            if state != self._seen:
                self._seen = state
                try:
                    self._current = _loaded(self._files)
                    _LOG.info("the certificate was exchanged: %s", self._files.certificate)
                except CertificateError as error:
                    _LOG.error("the certificate can't be exchanged, the one before stays: %s", error)
            return self._current


def _state(files: CertificateFiles) -> tuple[tuple[int, int, int] | None, ...]:
    """What changes when a file does."""

    def of(path: Path) -> tuple[int, int, int] | None:
        try:
            status = path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_ino, status.st_size

    return tuple(of(path) for path in files)


def _loaded(files: CertificateFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        if os.name == "posix" and files.key.stat().st_mode & 0o007:
            raise CertificateError(f"{files.key}: everybody has access to it: run chmod o-rwx on it")
        # An empty passphrase, so that OpenSSL never asks for one on the terminal.
        context.load_cert_chain(files.certificate, files.key, password="")
    except ssl.SSLError:
        message = f"{files.certificate} and {files.key} are no certificate and its private key, in PEM, unencrypted"
        raise CertificateError(message) from None
    except (OSError, ValueError) as error:
        what = error.strerror if isinstance(error, OSError) else error
        raise CertificateError(f"{files.certificate} and {files.key}: can't be read: {what}") from None
    return context


def _serves(files: CertificateFiles, host: str) -> bool:
    """Whether there is a self-signed certificate that is good for a while, and for this host."""
    if not (files.certificate.exists() and files.key.exists()):
        return False
    try:
        _loaded(files)
        found = _read(files.certificate)
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (CertificateError, x509.ExtensionNotFound):
        return False
    return found.not_valid_after_utc - utc_now() > _RENEWED_BEFORE and set(_names(host)) <= set(names)


def _read(certificate: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(certificate.read_bytes())
    except OSError as error:
        raise CertificateError(f"{certificate}: can't be read: {error.strerror or error}") from None
    except ValueError:
        raise CertificateError(f"{certificate}: is no certificate in PEM") from None


def _make_self_signed(files: CertificateFiles, host: str) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "latentguard, self-signed")])
    now = utc_now()
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + _LIFE)
        .add_extension(x509.SubjectAlternativeName(_names(host)), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_only_signatures(), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(identifier, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
        .sign(key, SHA256())
    )
    write_secret(files.key, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), replace=True)
    write_secret(files.certificate, certificate.public_bytes(Encoding.PEM), replace=True)


def _names(host: str) -> Sequence[x509.GeneralName]:
    """What a client may call the service: loopback by all its names, and the address that it listens on."""
    names: list[x509.GeneralName] = [x509.DNSName("localhost")]
    addresses = ["127.0.0.1", "::1"]
    try:
        if not ipaddress.ip_address(host).is_unspecified:
            addresses.append(host)
    except ValueError:
        names.append(x509.DNSName(host))
    names += [x509.IPAddress(ipaddress.ip_address(address)) for address in addresses]
    return list(dict.fromkeys(names))


def _only_signatures() -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
