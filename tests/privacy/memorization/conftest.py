"""Small random models with real processors, as folders that `from_pretrained` loads, and a few rendered images."""

from __future__ import annotations

from pathlib import Path

import pytest
from memorization_data import render_images, write_questions
from memorization_models import save_clip, save_llava, save_qwen


@pytest.fixture(scope="session")
def llava_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random LLaVA; not to be changed by a test."""
    return save_llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="session")
def qwen_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen2.5-VL; not to be changed by a test."""
    return save_qwen(tmp_path_factory.mktemp("qwen"))


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random CLIP; not to be changed by a test."""
    return save_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(params=["llava", "qwen"])
def vlm_folder(request: pytest.FixtureRequest) -> Path:
    """A random multimodal model, of one family after the other."""
    return Path(request.getfixturevalue(f"{request.param}_folder"))


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve images of shapes, every second one with a record's text, and their manifest; not to be changed."""
    return render_images(tmp_path_factory.mktemp("images"), 12)


@pytest.fixture(scope="session")
def examples_file(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A question on each image, and its answer."""
    return write_questions(tmp_path_factory.mktemp("examples") / "examples.jsonl", 12)
