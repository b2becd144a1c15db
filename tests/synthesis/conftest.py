"""Fixtures of the synthesis tests: a small lexicon and its grammar."""

from __future__ import annotations

from pathlib import Path

import pytest
from lexicons import FILES, write_lexicon

from latentguard.synthesis.grammar import Grammar


@pytest.fixture(scope="session")
def lexicon_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three small lexicon files; not to be changed by a test."""
    return write_lexicon(tmp_path_factory.mktemp("lexicon"), FILES)


@pytest.fixture(scope="session")
def grammar(lexicon_folder: Path) -> Grammar:
    """The grammar of the small lexicon."""
    return Grammar.load(lexicon_folder)
