"""`python -m privacy`, run as its users run it: in a process of its own, or in this one with its standard output."""

from __future__ import annotations

import base64
import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from cryptography.fernet import Fernet

from privacy import cli
from privacy.keys import PrivateKey, save_key

PASSPHRASE = "correct horse"
KINDS = ("x25519", "mlkem768-x25519", "ed25519")


class Result(NamedTuple):
    status: int
    out: str
    err: str


class Commands:
    """Runs commands in this process, in a folder of their own."""

    def __init__(self, capture: pytest.CaptureFixture[str]) -> None:
        self._capture = capture

    def __call__(self, *arguments: str | Path) -> Result:
        self._capture.readouterr()
        try:
            status = cli.main([str(argument) for argument in arguments])
        except SystemExit as error:
            status = int(error.code or 0)
        return Result(status, *self._capture.readouterr())

    def fine(self, *arguments: str | Path) -> str:
        result = self(*arguments)
        assert (result.status, result.err) == (0, "")
        return result.out.strip()

    def refused(self, *arguments: str | Path) -> str:
        result = self(*arguments)
        assert (result.status, result.out) == (2, "")
        assert result.err.count("\n") == 1
        return result.err


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PRIVACY_PASSPHRASE", PASSPHRASE)
    for name in ("PRIVACY_VAULT_URL", "PRIVACY_VAULT_KEYS"):
        monkeypatch.delenv(name, raising=False)
    # A cheap scrypt for keys made here; what the files say is what counts when they are read.
    monkeypatch.setattr("privacy.keys.save_key.__kwdefaults__", {"scrypt_cost": 4})
    return Commands(capsys)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "a.png"
    path.write_bytes(b"\x89PNG" + bytes(100_000))
    return path


def test_from_keygen_to_the_opened_image(run: Commands, image: Path) -> None:
    line = run.fine("keygen", "--output", "me.pem")
    assert run.fine("seal", "a.png", "--to", line) == "a.png.sealed"
    told = run.fine("open", "a.png.sealed", "--key", "me.pem", "--output", "b.png")
    assert told.startswith("b.png: sealed 20")
    assert told.endswith("not signed")
    assert Path("b.png").read_bytes() == image.read_bytes()


def test_a_process_of_its_own_does_the_same(tmp_path: Path, image: Path) -> None:
    def python(*arguments: str) -> str:
        environment = os.environ | {"PRIVACY_PASSPHRASE": PASSPHRASE}
        command = [sys.executable, "-m", "privacy", *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.strip()

    line = python("keygen", "--output", "me.pem")
    python("seal", "a.png", "--to", line)
    image.rename(tmp_path / "before.png")
    python("open", "a.png.sealed", "--key", "me.pem")
    assert image.read_bytes() == (tmp_path / "before.png").read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_keygen_prints_what_public_prints(run: Commands, kind: str) -> None:
    line = run.fine("keygen", "--output", "key.pem", "--kind", kind)
    assert line.startswith(f"{kind}:")
    assert run.fine("public", "key.pem") == line
    assert b"ENCRYPTED" in Path("key.pem").read_bytes()
    assert Path("key.pem").stat().st_mode & 0o777 == 0o600


def test_a_key_is_never_overwritten(run: Commands) -> None:
    run.fine("keygen", "--output", "key.pem")
    before = Path("key.pem").read_bytes()
    assert "key.pem: exists already" in run.refused("keygen", "--output", "key.pem")
    assert Path("key.pem").read_bytes() == before


def test_a_passphrase_from_a_file_goes_before_the_environment(run: Commands) -> None:
    secret = Path("secret")
    secret.write_text("another\n")
    secret.chmod(0o600)
    run.fine("keygen", "--output", "key.pem", "--passphrase-file", "secret")
    run.fine("public", "key.pem", "--passphrase-file", "secret")
    assert "passphrase is wrong" in run.refused("public", "key.pem")
    secret.chmod(0o644)
    assert "secret: other users have access" in run.refused("public", "key.pem", "--passphrase-file", "secret")


def test_no_passphrase_is_taken_from_an_argument(run: Commands) -> None:
    assert "unrecognized arguments" in run.refused("keygen", "--output", "key.pem", "--passphrase", "x")


def test_a_passphrase_is_asked_for_twice_for_a_new_key_and_once_later(
    run: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PRIVACY_PASSPHRASE")
    asked: list[str] = []
    answers = iter(["one", "two", "one", "one", "one"])

    def ask(what: str) -> str:
        asked.append(what)
        return next(answers)

    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("getpass.getpass", ask)
    assert "differ" in run.refused("keygen", "--output", "key.pem")
    run.fine("keygen", "--output", "key.pem")
    run.fine("public", "key.pem")
    assert len(asked) == 5


def test_without_a_terminal_nobody_is_asked(run: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PRIVACY_PASSPHRASE")
    monkeypatch.setattr("sys.stdin.isatty", lambda: False)
    assert "--passphrase-file" in run.refused("keygen", "--output", "key.pem")
    assert not Path("key.pem").exists()


def test_a_key_without_a_passphrase_needs_none(run: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    run.fine("keygen", "--output", "key.pem", "--no-passphrase")
    monkeypatch.delenv("PRIVACY_PASSPHRASE")
    run.fine("public", "key.pem")


def test_a_signed_file_tells_its_signer_and_model(run: Commands, image: Path) -> None:
    me, server = (
        run.fine("keygen", "--output", f"{kind}.pem", "--kind", kind, "--no-passphrase")
        for kind in (KINDS[0], KINDS[2])
    )
    Path("server.pub").write_text(f"# the server\n{server}\n")
    Path("prompt.txt").write_text("a red bicycle\n")
    run.fine(
        "seal", image, "--to", me, "--sign", "ed25519.pem", "--model", "sdxl\x1b[2J", "--prompt-file", "prompt.txt"
    )
    told = run.fine("open", "a.png.sealed", "--key", "x25519.pem", "--signer", "server.pub", "--output", "b.png")
    assert told.endswith(f"UTC, model 'sdxl\\x1b[2J', signed by {server}")


def test_many_files_many_recipients_many_keys(run: Commands, image: Path) -> None:
    lines = [run.fine("keygen", "--output", f"{i}.pem", "--kind", KINDS[i], "--no-passphrase") for i in range(2)]
    Path("all.pub").write_text("\n".join(lines))
    Path("b.png").write_bytes(b"b")
    assert run.fine("seal", "a.png", "b.png", "--to", "all.pub").split() == ["a.png.sealed", "b.png.sealed"]
    image.unlink()
    Path("b.png").unlink()
    for key in ("0.pem", "1.pem"):
        run.fine("open", "b.png.sealed", "--key", key, "--output", f"{key}.b")
    run.fine("keygen", "--output", "new.pem", "--no-passphrase")
    run.fine("open", "a.png.sealed", "b.png.sealed", "--key", "new.pem", "1.pem")
    assert Path("b.png").read_bytes() == b"b"


def test_a_rotation(run: Commands, image: Path) -> None:
    old = run.fine("keygen", "--output", "old.pem", "--no-passphrase")
    new = run.fine("keygen", "--output", "new.pem", "--no-passphrase", "--kind", "mlkem768-x25519")
    run.fine("seal", image, "--to", old)
    run.fine("rotate", "a.png.sealed", "--key", "old.pem", "--to", new)
    assert "can't be opened" in run.refused("open", "a.png.sealed", "--key", "old.pem", "--output", "b.png")
    run.fine("open", "a.png.sealed", "--key", "new.pem", "--output", "b.png")


def test_whatever_is_wrong_with_a_sealed_file_the_answer_is_the_same(run: Commands, image: Path) -> None:
    me = run.fine("keygen", "--output", "me.pem", "--no-passphrase")
    server = run.fine("keygen", "--output", "server.pem", "--no-passphrase", "--kind", "ed25519")
    run.fine("keygen", "--output", "other.pem", "--no-passphrase")
    run.fine("seal", image, "--to", me, "--output", "x")
    good = Path("x").read_bytes()
    answers = {run.refused("open", "x", "--key", "other.pem", "--output", "out")}
    answers.add(run.refused("open", "x", "--key", "me.pem", "--signer", server, "--output", "out"))
    for bad in (good[:-1], good + b"\0", b"", good[:8] + b"\x02" + good[9:], good[:-1] + bytes([good[-1] ^ 1])):
        Path("x").write_bytes(bad)
        answers.add(run.refused("open", "x", "--key", "me.pem", "--output", "out"))
    assert len(answers) == 1
    assert not Path("out").exists()


def test_an_output_that_was_not_named_is_never_replaced(run: Commands, image: Path) -> None:
    me = run.fine("keygen", "--output", "me.pem", "--no-passphrase")
    run.fine("seal", image, "--to", me)
    assert "a.png.sealed: exists already" in run.refused("seal", image, "--to", me)
    assert "a.png: exists already" in run.refused("open", "a.png.sealed", "--key", "me.pem")
    run.fine("seal", image, "--to", me, "--output", "a.png.sealed")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("seal", "a.png", "--to", "none.pub"), "none.pub: can't be read"),
        (("seal", "a.png", "--to", "x25519:AAAA"), "x25519:AAAA…: is no public key"),
        (("seal", "a.png", "--to", "bad.pub"), "bad.pub: line 3: is no public key"),
        (("seal", "a.png", "--to", "empty.pub"), "empty.pub: holds no public key"),
        (("seal", "none.png", "--to", "good.pub"), "none.png: can't be read"),
        (("seal", "a.png", "--to", "good.pub", "--output", "no/where"), "the folder"),
        (("seal", "a.png", "good.pub", "--to", "good.pub", "--output", "x"), "--output is one file"),
        (("seal", "a.png", "--to", "good.pub", "--sign", "key.pem"), "key.pem: is a key that opens"),
        (("seal", "a.png", "--to", "good.pub", "--model", "x" * 300), "longer than 255 bytes"),
        (("open", "a.png", "--key", "key.pem"), "give --output"),
        (("open", "a.png", "--key", "good.pub", "--output", "x"), "good.pub: other users have access"),
        (("open", "a.png", "--key", "key.pem", "--output", "x", "--signer", "good.pub"), "not one that verifies"),
        (("public", "none.pem"), "none.pem: can't be read"),
        (("vault", "purge"), "which vault"),
        (("vault", "purge", "--url", "sqlite:///v.db"), "PRIVACY_VAULT_KEYS"),
        (("vault", "purge", "--url", "postgresql://me:hunter2@host/name"), "PRIVACY_VAULT_URL"),
        (("vault", "rotate", "--new-key", "--url", "sqlite:///v.db"), "--keys"),
        (("nonsense",), "nonsense"),
        ((), "COMMAND"),
    ],
)
def test_a_mistake_gets_one_line(run: Commands, image: Path, arguments: tuple[str, ...], message: str) -> None:
    key = PrivateKey.generate()
    save_key(key, "key.pem", passphrase=None)
    Path("good.pub").write_text(str(key.public_key()))
    Path("good.pub").chmod(0o644)
    Path("bad.pub").write_text(f"# mine\n{key.public_key()}\nno key\n")
    Path("empty.pub").write_text("# nobody\n")
    line = run.refused(*arguments)
    assert message in line
    assert "hunter2" not in line


def test_an_image_of_the_published_flow(run: Commands) -> None:
    key = base64.urlsafe_b64encode(hashlib.sha256(b"2").digest())
    Path("image.enc").write_bytes(Fernet(key).encrypt(b"image"))
    Path("secret").write_text("2\n")
    result = run("open-published", "image.enc", "--secret-file", "secret", "--output", "image.png")
    assert (result.status, result.out) == (0, "image.png\n")
    assert result.err.startswith("warning: image.enc: the published flow's key exchange protects nothing")
    assert Path("image.png").read_bytes() == b"image"
    Path("secret").write_text("3\n")
    assert "image.enc: can't be opened" in run.refused(
        "open-published", "image.enc", "--secret-file", "secret", "--output", "image.png"
    )


def test_a_vault_is_looked_after(run: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sqlalchemy")
    from privacy.master_keys import FileMasterKeys
    from privacy.vault import Vault

    run.fine("vault", "init", "--keys", "vault.keys")
    record = Vault("sqlite:///vault.db", FileMasterKeys("vault.keys")).store("result", b"value")
    monkeypatch.setenv("PRIVACY_VAULT_URL", "sqlite:///vault.db")
    FileMasterKeys("vault.keys").add()
    assert "1 records are still under older" in run.refused("vault", "retire", "--keys", "vault.keys")
    assert run.fine("vault", "rotate", "--keys", "vault.keys", "--new-key") == "1 data keys wrapped anew"
    assert "wait" in run.refused("vault", "retire", "--keys", "vault.keys")
    os.utime("vault.keys", (0, 0))
    assert run.fine("vault", "retire", "--keys", "vault.keys") == "2 older master keys removed"
    monkeypatch.setenv("PRIVACY_VAULT_KEYS", Path("vault.keys").read_text())
    assert run.fine("vault", "purge") == "0 expired records deleted"
    assert Vault("sqlite:///vault.db", FileMasterKeys("vault.keys")).fetch(record) == b"value"


@pytest.mark.parametrize("command", ["closeness", "scrub"])
def test_the_commands_over_data_are_there(run: Commands, command: str) -> None:
    assert run(command, "--help").status == 0
