"""Tools over the default guard, a small random pipeline and the shipped networks; a user with keys and an image."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("mcp", reason="agents' tools need the MCP SDK, of the extra agents")
pytest.importorskip("httpx", reason="agents' tools need httpx, of the extra agents")
pytest.importorskip("open_clip", reason="the small pipelines' tokenizer is made of open_clip's vocabulary")

from agent_parts import User
from PIL import Image

from examples import tiny
from latentguard import LatentGuard
from latentguard.integrations.tools.local import LocalTools
from privacy.encrypted_inference import Client, Server, load_architecture, load_weights, shipped_folder
from privacy.encrypted_inference.data import load_images, load_picture
from privacy.keys import PrivateKey, save_key


@pytest.fixture(scope="session")
def drawn() -> list[str]:
    """What the pipeline of `tools` was given to draw, in order."""
    return []


@pytest.fixture(scope="session")
def pipeline(drawn: list[str]) -> Any:
    """A random Stable Diffusion pipeline that remembers what it draws."""
    tiny.quiet()
    pipe = tiny.stable_diffusion()
    encode = pipe.encode_prompt

    def watched(prompt: Any, *rest: Any, **more: Any) -> Any:
        drawn.extend([prompt] if isinstance(prompt, str) else prompt)
        return encode(prompt, *rest, **more)

    pipe.encode_prompt = watched
    return pipe


@pytest.fixture(scope="session")
def pipeline_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same kind of pipeline as files."""
    folder = tmp_path_factory.mktemp("pipeline")
    tiny.stable_diffusion().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tools(default_guard: LatentGuard, pipeline: Any) -> Iterator[LocalTools]:
    with Server({"mnist": shipped_folder("mnist")}) as server:
        yield LocalTools(default_guard, pipeline=pipeline, classifier=server, model="tiny")


@pytest.fixture(scope="session")
def user(tmp_path_factory: pytest.TempPathFactory) -> User:
    folder = tmp_path_factory.mktemp("user")
    key = PrivateKey.generate()
    save_key(key, folder / "me.pem", passphrase=None)
    picture = _seven(folder / "seven.png")
    client, keys = Client.generate(load_architecture("mnist"), "mnist")
    client.save(folder / "client.secret")
    pixels = load_picture(picture, client.architecture.side)[None]
    (folder / "query").write_bytes(client.encrypt(pixels))
    (folder / "client.keys").write_bytes(keys)
    label = client.architecture.labels[int(load_weights("mnist").logits(pixels).argmax())]
    return User(
        key,
        folder / "me.pem",
        client,
        folder / "client.secret",
        folder / "query",
        folder / "client.keys",
        picture,
        label,
    )


def _seven(path: Path) -> Path:
    """A handwritten seven of scikit-learn's digits, enlarged to what MNIST's pictures look like."""
    digits = load_images("digits")
    pixels = digits.pixels[int(np.flatnonzero(digits.classes == 7)[0])]
    small = Image.fromarray((255 * pixels).astype(np.uint8)).resize((20, 20), Image.Resampling.BICUBIC)
    picture = Image.new("L", (28, 28))
    picture.paste(small, (4, 4))
    picture.save(path)
    return path
