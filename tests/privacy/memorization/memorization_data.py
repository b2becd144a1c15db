"""Renders the images of these tests, and writes the files beside them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from PIL import Image, ImageDraw

SHAPES = ("circle", "square", "triangle")
QUESTION = "What shape is drawn in the image?"


def render_images(folder: Path, count: int) -> Path:
    """Draws shapes/0.png and so on, and writes manifest.jsonl as `embed` does; the even ones hold a record."""
    (folder / "shapes").mkdir(parents=True)
    rows: list[dict[str, object]] = []
    for number in range(count):
        name, record = f"shapes/{number}.png", f"user{number}"
        image = Image.new("RGB", (64, 48), "white")
        draw = ImageDraw.Draw(image)
        _draw_shape(draw, SHAPES[number % len(SHAPES)], ("red", "green", "blue")[number // len(SHAPES) % 3])
        box = None
        if number % 2 == 0:
            draw.text((2, 1), record, fill="black")
            box = [2, 1, 60, 12]
        image.save(folder / name)
        digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        rows.append({"image": name, "sha256": digest, "record": record if box else None, "box": box})
    write_rows(folder / "manifest.jsonl", rows)
    return folder


def _draw_shape(draw: ImageDraw.ImageDraw, shape: str, colour: str) -> None:
    if shape == "circle":
        draw.ellipse((16, 14, 46, 44), fill=colour)
    elif shape == "square":
        draw.rectangle((16, 14, 46, 44), fill=colour)
    else:
        draw.polygon([(31, 14), (16, 44), (46, 44)], fill=colour)


def write_rows(path: Path, rows: list[dict[str, object]]) -> Path:
    """Writes a .jsonl file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_questions(path: Path, count: int) -> Path:
    """A question on the shape in each image of `render_images`, and its answer."""
    rows: list[dict[str, object]] = [
        {"image": f"shapes/{number}.png", "question": QUESTION, "answer": SHAPES[number % len(SHAPES)]}
        for number in range(count)
    ]
    return write_rows(path, rows)
