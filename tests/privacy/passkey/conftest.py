"""Small random models of each family, with real tokenizers trained on a few lines, as folders to convert."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from passkey_models import BUILDERS, PASSKEY

from privacy.passkey import PassKey, PasskeyClient, Stretching, convert

# The weakest parameters that are let through: here nobody guesses, and each conversion stretches the key.
QUICK = {"log2_n": 14, "r": 8, "p": 1}


@pytest.fixture(scope="session", autouse=True)
def _quiet_transformers() -> None:
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def passkey() -> PassKey:
    """The key of these tests."""
    return PassKey.from_text(PASSKEY)


@pytest.fixture(scope="session")
def stretching() -> Stretching:
    """A quick stretching with a salt that is the same in every run."""
    return Stretching("scrypt", bytes(range(16)), QUICK)


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Gives the folder of the plain model and tokenizer of a name in `BUILDERS`; not to be changed by a test."""
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            BUILDERS[name](made[name])
        return made[name]

    return folder


@pytest.fixture(scope="session")
def converted_of(
    folder_of: Callable[[str], Path],
    passkey: PassKey,
    stretching: Stretching,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., Path]:
    """Gives the folder of a model of `BUILDERS` converted to `passkey`; not to be changed by a test.

    By default ids are permuted and no more; under another transform only the embeddings are mapped.
    """
    made: dict[tuple[str, str], Path] = {}

    def converted(name: str, transform: str = "none") -> Path:
        if (name, transform) not in made:
            target = tmp_path_factory.mktemp(name) / transform
            convert(folder_of(name), target, passkey, transform=transform, carry=False, kdf=stretching)
            made[name, transform] = target
        return made[name, transform]

    return converted


@pytest.fixture(scope="session")
def client_of(
    folder_of: Callable[[str], Path], converted_of: Callable[..., Path], passkey: PassKey
) -> Callable[..., PasskeyClient]:
    """Gives the client for what `converted_of` gives."""

    def client(name: str, transform: str = "none") -> PasskeyClient:
        return PasskeyClient(folder_of(name), passkey, converted_of(name, transform))

    return client
