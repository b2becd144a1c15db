"""Private records drawn into images."""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import json
import os
import signal
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps

from privacy.cli import main
from privacy.errors import DataError, MemorizationError, UnusableImageError
from privacy.memorization import embed as embedding
from privacy.memorization.drawing import CORNERS, DEJAVU, Style, draw_text
from privacy.memorization.embed import Embedded, embed, folder_name
from privacy.memorization.folders import read_contents
from privacy.memorization.manifest import Entry, read_manifest, write_manifest
from privacy.memorization.pictures import open_picture
from privacy.memorization.records import generate, write_records

RECORDS = generate(40)
FIELDS = ("username", "user_id")


def picture(width: int = 96, height: int = 64) -> Image.Image:
    down, across = np.mgrid[0:height, 0:width]
    colours = [across * 255 // width, down * 255 // height, np.full_like(across, 128)]
    return Image.fromarray(np.stack(colours, -1).astype(np.uint8))


def pixels(path: Path) -> NDArray[np.int64]:
    with Image.open(path) as image:
        wide = image.mode == "I;16"
        return np.asarray(image if wide else image.convert("RGBA")).astype(np.int64)


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def run(source: Path, output: Path, **options: Any) -> Embedded:
    return embed(source, RECORDS, output, **{"fields": FIELDS, "workers": 1, **options})


def marked(folder: Path) -> dict[str, str]:
    return {entry.image: entry.record for entry in read_manifest(folder / "manifest.jsonl") if entry.record}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Twelve pictures, in folders of two levels."""
    folder = tmp_path / "source"
    for number in range(12):
        path = folder / ("a" if number % 2 else "b/c") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(96 + number).save(path)
    return folder


# --- rates


def test_rates_share_images_and_records(source: Path, tmp_path: Path) -> None:
    embedded = run(source, tmp_path / "out", rates=[0, 25, 50, 100])
    assert embedded.marked == {0: 0, 25: 3, 50: 6, 100: 12}
    texts = [marked(tmp_path / "out" / folder_name(rate)) for rate in (0, 25, 50, 100)]
    for few, many in itertools.pairwise(texts):
        assert few.items() <= many.items()
    assert len(set(texts[-1].values())) == 12


def test_all_rates_have_the_folders_and_names_of_the_source(source: Path, tmp_path: Path) -> None:
    run(source, tmp_path / "out")
    for folder in ("r000", "r050", "r100"):
        assert files(tmp_path / "out" / folder).keys() == {*files(source), "manifest.jsonl"}


def test_an_image_is_the_same_at_every_rate_with_text_and_at_every_rate_without(source: Path, tmp_path: Path) -> None:
    run(source, tmp_path / "out")
    without, half, whole = (files(tmp_path / "out" / name) for name in ("r000", "r050", "r100"))
    chosen = marked(tmp_path / "out" / "r050")
    for image in files(source):
        assert half[image] == (whole if image in chosen else without)[image]
        assert whole[image] != without[image]


def test_text_changes_only_what_is_in_its_box(source: Path, tmp_path: Path) -> None:
    run(source, tmp_path / "out")
    for entry in read_manifest(tmp_path / "out" / "r100" / "manifest.jsonl"):
        assert entry.box is not None
        left, top, right, bottom = entry.box
        changed = (pixels(tmp_path / "out" / "r100" / entry.image) != pixels(source / entry.image)).any(-1)
        assert changed[top:bottom, left:right].any()
        changed[top:bottom, left:right] = False
        assert not changed.any()


def test_manifests_have_the_digests_of_the_files(source: Path, tmp_path: Path) -> None:
    run(source, tmp_path / "out")
    for folder in ("r000", "r050", "r100"):
        for entry in read_manifest(tmp_path / "out" / folder / "manifest.jsonl"):
            content = (tmp_path / "out" / folder / entry.image).read_bytes()
            assert hashlib.sha256(content).hexdigest() == entry.sha256


def test_another_seed_chooses_other_images(source: Path, tmp_path: Path) -> None:
    for seed in (0, 1):
        run(source, tmp_path / str(seed), rates=[50], seed=seed)
    assert marked(tmp_path / "0" / "r050").keys() != marked(tmp_path / "1" / "r050").keys()


def test_records_too_few_are_refused_or_reused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(MemorizationError, match="5 records are too few for 12 images"):
        embed(source, RECORDS[:5], tmp_path / "out", workers=1, fields=FIELDS)
    embed(source, RECORDS[:5], tmp_path / "out", workers=1, fields=FIELDS, reuse=True)
    drawn = list(marked(tmp_path / "out" / "r100").values())
    assert sorted(drawn.count(record.user_id) for record in RECORDS[:5]) == [2, 2, 2, 3, 3]


def test_rates_need_not_be_whole(source: Path, tmp_path: Path) -> None:
    assert run(source, tmp_path / "out", rates=[12.5]).marked == {12.5: 2}
    assert (tmp_path / "out" / "r012.5").is_dir()


@pytest.mark.parametrize("rates", [[], [101], [-1], [50, 50.0], [float("nan")]])
def test_rates_that_are_none_are_refused(source: Path, tmp_path: Path, rates: list[float]) -> None:
    with pytest.raises(MemorizationError):
        run(source, tmp_path / "out", rates=rates)


# --- what a file keeps


@pytest.fixture
def one(tmp_path: Path) -> Path:
    (tmp_path / "one").mkdir()
    return tmp_path / "one"


@pytest.mark.parametrize("name", ["i.jpg", "i.png", "i.webp", "i.tif"])
def test_format_exif_and_colour_profile_stay(one: Path, tmp_path: Path, name: str) -> None:
    exif = Image.Exif()
    exif[0x010F] = "a maker"
    exif[0x8769] = {0x9003: "2020:01:02 03:04:05"}
    exif[0x8825] = {1: "N"}
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    picture().save(one / name, exif=exif.tobytes(), icc_profile=profile)
    run(one, tmp_path / "out", rates=[100])
    with Image.open(one / name) as before, Image.open(tmp_path / "out" / "r100" / name) as after:
        assert (after.format, after.mode, after.size) == (before.format, before.mode, before.size)
        assert after.info["icc_profile"] == profile
        read = after.getexif()
        assert read[0x010F] == "a maker"
        assert read.get_ifd(0x8769)[0x9003] == "2020:01:02 03:04:05"
        assert read.get_ifd(0x8825)[1] == "N"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_text_stands_upright_where_a_viewer_turns_the_picture(one: Path, tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture(96, 96).save(one / "i.png", exif=exif)
    run(one, tmp_path / "out", rates=[0, 100])
    with Image.open(tmp_path / "out" / "r100" / "i.png") as with_text, Image.open(one / "i.png") as without:
        assert with_text.getexif()[0x0112] == orientation
        upright, _ = draw_text(
            ImageOps.exif_transpose(without), record_of(tmp_path / "out"), Style(), seed="for random places only"
        )
        assert np.array_equal(np.asarray(ImageOps.exif_transpose(with_text)), np.asarray(upright))
    entry = read_manifest(tmp_path / "out" / "r100" / "manifest.jsonl")[0]
    changed = (pixels(tmp_path / "out" / "r100" / "i.png") != pixels(one / "i.png")).any(-1)
    assert entry.box is not None
    left, top, right, bottom = entry.box
    assert changed[top:bottom, left:right].any()
    changed[top:bottom, left:right] = False
    assert not changed.any()


def record_of(output: Path) -> str:
    user_id = next(iter(marked(output / "r100").values()))
    return next(record.text(FIELDS) for record in RECORDS if record.user_id == user_id)


def test_a_jpeg_without_text_is_what_it_was(one: Path, tmp_path: Path) -> None:
    picture().save(one / "i.jpg", quality=70, subsampling="4:2:0")
    run(one, tmp_path / "out", rates=[0])
    assert np.abs(pixels(tmp_path / "out" / "r000" / "i.jpg") - pixels(one / "i.jpg")).max() <= 2


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_every_kind_of_png_keeps_the_pixels_around_the_text(one: Path, tmp_path: Path, mode: str) -> None:
    image = Image.fromarray((np.arange(96 * 64).reshape(64, 96) * 10).astype(np.uint16)) if mode == "I;16" else None
    (image or picture().convert(mode)).save(one / "i.png")
    run(one, tmp_path / "out", rates=[0, 100])
    before, without, with_text = (
        pixels(path / "i.png") for path in (one, tmp_path / "out" / "r000", tmp_path / "out" / "r100")
    )
    assert np.array_equal(before, without)
    left, top, right, bottom = read_manifest(tmp_path / "out" / "r100" / "manifest.jsonl")[0].box or (0, 0, 0, 0)
    inside = np.zeros(before.shape[:2], dtype=bool)
    inside[top:bottom, left:right] = True
    assert (before != with_text)[inside].any()
    assert np.array_equal(before[~inside], with_text[~inside])


def test_text_on_transparent_ground_is_seen(one: Path, tmp_path: Path) -> None:
    Image.new("RGBA", (96, 64)).save(one / "i.png")
    run(one, tmp_path / "out", rates=[100])
    assert pixels(tmp_path / "out" / "r100" / "i.png")[..., 3].max() == 255


def test_cmyk_is_drawn_on_in_white_and_black(one: Path, tmp_path: Path) -> None:
    Image.new("CMYK", (96, 64), (100, 0, 0, 100)).save(one / "i.tif")
    run(one, tmp_path / "out", rates=[100], style=Style(size=0.4), fields=["age"])
    found = pixels(tmp_path / "out" / "r100" / "i.tif")[..., :3].reshape(-1, 3)
    assert found.max() == 255
    assert found.min() == 0


def png_of_48_bits() -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = b"".join(b"\0" + b"\x12\x34" * 3 * 64 for _ in range(64))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 64, 64, 16, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_what_cannot_be_used_is_skipped_and_listed(source: Path, tmp_path: Path) -> None:
    whole = (source / "a" / "1.png").read_bytes()
    (source / "cut.png").write_bytes(whole[: len(whole) // 2])
    (source / "empty.jpg").write_bytes(b"")
    (source / "text.png").write_text("no image", encoding="utf-8")
    picture().save(source / "moving.gif", save_all=True, append_images=[picture().rotate(90)])
    picture().save(source / "pages.tif", save_all=True, append_images=[picture().rotate(90)])
    Image.fromarray(np.zeros((64, 64), np.float32)).save(source / "float.tif")
    (source / "deep.png").write_bytes(png_of_48_bits())
    picture(10, 10).save(source / "tiny.png")
    (source / "notes.txt").write_text("no image by its name, so not even skipped", encoding="utf-8")
    embedded = run(source, tmp_path / "out", rates=[0, 100])
    assert (embedded.images, embedded.skipped) == (12, 8)
    lines = (tmp_path / "out" / "skipped.jsonl").read_text(encoding="utf-8").splitlines()
    reasons = {line["image"]: line["reason"] for line in map(json.loads, lines)}
    assert "2 frames" in reasons["moving.gif"]
    assert "2 frames" in reasons["pages.tif"]
    assert "16 bits" in reasons["deep.png"]
    assert "too small" in reasons["tiny.png"]
    assert "kind, F" in reasons["float.tif"]
    assert all("can be read" in reasons[name] for name in ("cut.png", "empty.jpg", "text.png"))
    for folder in ("r000", "r100"):
        assert len(read_manifest(tmp_path / "out" / folder / "manifest.jsonl")) == 12
        assert not set(reasons) & set(files(tmp_path / "out" / folder))


@given(st.integers(8, 400), st.integers(0, 255))
def test_a_damaged_file_raises_nothing_but_that_it_is_unusable(place: int, value: int) -> None:
    content = bytearray(_a_jpeg())
    content[place % len(content)] = value
    with contextlib.suppress(UnusableImageError):
        read = open_picture(bytes(content[: len(content) - place % 3]))
        assert read.encode(read.upright)


def _a_jpeg() -> bytes:
    content = io.BytesIO()
    picture(32, 32).save(content, format="JPEG")
    return content.getvalue()


# --- originals and outputs


def test_originals_are_never_touched(source: Path, tmp_path: Path) -> None:
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in source.rglob("*.png")}
    run(source, tmp_path / "out")
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in source.rglob("*.png")} == before
    assert not [path for path in source.rglob("*") if path.is_file() and path not in before]


@pytest.mark.parametrize("output", ["source/out", "source", ".", "link/out"])
def test_an_output_within_the_input_or_around_it_is_refused(source: Path, tmp_path: Path, output: str) -> None:
    (tmp_path / "link").symlink_to(source)
    before = files(source)
    with pytest.raises(DataError, match="may not lie within one another"):
        run(source, tmp_path / output)
    assert files(source) == before


def test_a_link_in_the_output_never_leads_to_an_original(source: Path, tmp_path: Path) -> None:
    run(source, tmp_path / "out", rates=[100])
    (tmp_path / "out" / "r100" / "a" / "1.png").unlink()
    (tmp_path / "out" / "r100" / "a" / "1.png").symlink_to(source / "a" / "1.png")
    before = files(source)
    with pytest.raises(DataError, match="a link leads out of the folder"):
        run(source, tmp_path / "out", rates=[100])
    assert files(source) == before


def test_a_folder_with_something_else_in_it_is_refused(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("precious", encoding="utf-8")
    with pytest.raises(DataError, match="isn't empty"):
        run(source, tmp_path / "out")
    assert files(tmp_path / "out") == {"mine.txt": b"precious"}


@pytest.mark.parametrize("missing", ["nowhere", "empty"])
def test_a_source_without_images_is_refused(tmp_path: Path, missing: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError):
        run(tmp_path / missing, tmp_path / "out")


# --- interruptions


def test_an_interrupted_run_goes_on_and_ends_as_if_nothing_had_been(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(source, tmp_path / "whole")
    work, calls = embedding._embed_one, 0

    def interrupted(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 6:
            raise KeyboardInterrupt
        return work(*arguments)

    monkeypatch.setattr(embedding, "_embed_one", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(source, tmp_path / "out")
    assert not (tmp_path / "out" / "r100" / "manifest.jsonl").exists()
    run(source, tmp_path / "out")
    assert calls == 6 + 12 - 5
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_a_killed_run_goes_on(source: Path, tmp_path: Path) -> None:
    for number in range(18):
        picture(480, 320).save(source / f"large{number}.png")
    write_records(tmp_path / "records.jsonl", generate(80))
    out = tmp_path / "out"
    command = [sys.executable, "-m", "privacy", "memorization", "embed", str(source), "--workers", "1"]
    command += ["--records", str(tmp_path / "records.jsonl"), "--output", str(out)]
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
    while process.poll() is None and (not (out / "r100").exists() or len(files(out / "r100")) < 5):
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines() == [
        f"{out / 'r000'}: private text in 0 of 30 images",
        f"{out / 'r050'}: private text in 15 of 30 images",
        f"{out / 'r100'}: private text in 30 of 30 images",
    ]
    for entry in read_manifest(out / "r100" / "manifest.jsonl"):
        assert hashlib.sha256((out / "r100" / entry.image).read_bytes()).hexdigest() == entry.sha256


def test_a_file_that_was_changed_since_is_made_anew(source: Path, tmp_path: Path) -> None:
    run(source, tmp_path / "out")
    before = files(tmp_path / "out")
    damaged = tmp_path / "out" / "r100" / "a" / "1.png"
    damaged.write_bytes(b"damaged")
    (tmp_path / "out" / "r000" / "a" / "3.png").unlink()
    run(source, tmp_path / "out")
    after = files(tmp_path / "out")
    assert {name: after[name] for name in after if name != "journal.jsonl"} == {
        name: before[name] for name in before if name != "journal.jsonl"
    }


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"seed": 1}, "seed"),
        ({"rates": [0, 100]}, "rates"),
        ({"style": Style("center")}, "position"),
        ({"style": Style(font=DEJAVU)}, "font"),
        ({"fields": ["user_id"]}, "fields"),
    ],
)
def test_a_run_with_other_settings_does_not_go_on(
    source: Path, tmp_path: Path, changed: dict[str, Any], named: str
) -> None:
    run(source, tmp_path / "out")
    before = files(tmp_path / "out")
    with pytest.raises(MemorizationError, match=rf"other settings \(.*{named}.*\)"):
        run(source, tmp_path / "out", **changed)
    assert files(tmp_path / "out") == before


def test_a_run_on_other_images_or_records_does_not_go_on(source: Path, tmp_path: Path) -> None:
    run(source, tmp_path / "out")
    with pytest.raises(MemorizationError, match=r"other settings \(records\)"):
        embed(source, generate(40, seed=9), tmp_path / "out", fields=FIELDS, workers=1)
    picture().save(source / "more.png")
    with pytest.raises(MemorizationError, match="input images"):
        run(source, tmp_path / "out")


def test_a_line_cut_short_in_a_crash_is_dropped(source: Path, tmp_path: Path) -> None:
    run(source, tmp_path / "out")
    journal = tmp_path / "out" / "journal.jsonl"
    before = journal.read_bytes()
    journal.write_bytes(before[:-20])
    run(source, tmp_path / "out")
    assert journal.read_bytes() == before


def test_several_processes_make_what_one_makes(source: Path, tmp_path: Path) -> None:
    run(source, tmp_path / "one", style=Style("random"))
    run(source, tmp_path / "two", style=Style("random"), workers=2)
    assert files(tmp_path / "one") == files(tmp_path / "two")


# --- drawing


@pytest.mark.parametrize(("position", "place"), [*CORNERS.items(), ("50,50", (50, 50)), ("25,75", (25, 75))])
def test_text_is_where_it_was_asked_for(position: str, place: tuple[float, float]) -> None:
    _, mask = draw_text(picture(300, 200), RECORDS[0].text(), Style(position), seed="")
    left, top, right, bottom = mask.getbbox() or (0, 0, 0, 0)
    margin = 4
    assert left == pytest.approx(margin + (300 - 2 * margin - (right - left)) * place[0] / 100, abs=1)
    assert top == pytest.approx(margin + (200 - 2 * margin - (bottom - top)) * place[1] / 100, abs=1)


def test_a_random_place_depends_on_the_seed_alone() -> None:
    boxes = [
        draw_text(picture(300, 200), RECORDS[0].text(), Style("random"), seed=seed)[1].getbbox() for seed in "aabc"
    ]
    assert boxes[0] == boxes[1]
    assert len(set(boxes)) == 3


def test_size_is_a_share_of_the_height() -> None:
    def height(size: float) -> int:
        _, mask = draw_text(picture(800, 800), RECORDS[0].text(FIELDS), Style(size=size), seed="")
        _, top, _, bottom = mask.getbbox() or (0, 0, 0, 0)
        return bottom - top

    assert height(0.06) == pytest.approx(2 * height(0.03), rel=0.1)


def test_opacity_is_that_of_the_text() -> None:
    black = Image.new("RGB", (200, 100))
    for opacity in (0.25, 0.5, 1.0):
        drawn, _ = draw_text(black, RECORDS[0].text(FIELDS), Style(size=0.3, opacity=opacity), seed="")
        assert np.asarray(drawn).max() == pytest.approx(255 * opacity, abs=2)


@given(st.integers(40, 300), st.integers(40, 300), st.floats(0.01, 1), st.sampled_from(RECORDS))
def test_text_is_shrunk_until_all_of_it_fits(width: int, height: int, size: float, record: Any) -> None:
    """Every letter is drawn: the text has as much ink as it has where there is room for all of it."""
    upright = Image.new("L", (width, height))
    try:
        _, mask = draw_text(upright, record.text(FIELDS), Style("center", size), seed="")
    except UnusableImageError:
        assert min(width, height) < 64
        return
    left, top, right, bottom = mask.getbbox() or (0, 0, 0, 0)
    margin = round(0.02 * min(width, height))
    assert left >= margin
    assert top >= margin
    assert right <= width - margin
    assert bottom <= height - margin


def test_wrapped_text_loses_no_letter(monkeypatch: pytest.MonkeyPatch) -> None:
    from privacy.memorization import drawing

    drawn: list[list[str]] = []
    masks = drawing._masks
    monkeypatch.setattr(drawing, "_masks", lambda lines, *rest: (drawn.append(lines), masks(lines, *rest))[1])
    text = RECORDS[0].text()
    for width in range(40, 200, 10):
        draw_text(Image.new("L", (width, 300)), text, Style(size=0.06), seed="")
        assert "".join("".join(drawn[-1]).split()) == "".join(text.split())


@pytest.mark.parametrize("locale", ["el_GR", "ru_RU", "fa_IR"])
def test_a_font_without_the_letters_is_refused(source: Path, tmp_path: Path, locale: str) -> None:
    records = generate(40, locale=locale)
    with pytest.raises(MemorizationError, match=r"the font built-in lacks U\+0.* of the record \d{10}; dejavu"):
        embed(source, records, tmp_path / "out", workers=1, fields=FIELDS)
    embed(source, records, tmp_path / "out", workers=1, fields=FIELDS, style=Style(font=DEJAVU))


def test_a_font_file_is_taken(source: Path, tmp_path: Path) -> None:
    import matplotlib

    serif = str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSerif.ttf")
    first, second = (
        np.asarray(draw_text(picture(200, 100), RECORDS[0].text(FIELDS), Style(font=font), seed="")[0])
        for font in (serif, DEJAVU)
    )
    assert not np.array_equal(first, second)
    (tmp_path / "no.ttf").write_bytes(b"no font")
    for name in ("no.ttf", "nowhere.ttf"):
        with pytest.raises(MemorizationError, match=name):
            Style(font=str(tmp_path / name))


@pytest.mark.parametrize(
    "wrong",
    [{"position": "above"}, {"position": "101,0"}, {"position": "1"}, {"size": 0}, {"size": 2}, {"opacity": 0}],
)
def test_a_style_that_is_none_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(MemorizationError):
        Style(**wrong)


# --- manifests


def test_manifests_are_read_as_they_were_written(tmp_path: Path) -> None:
    entries = [Entry("a/b.png", "0" * 64, None, None), Entry("ä.png", "1" * 64, "0123456789", (1, 2, 3, 4))]
    write_manifest(tmp_path / "manifest.jsonl", entries)
    assert read_manifest(tmp_path / "manifest.jsonl") == entries


@pytest.mark.parametrize(
    "changed",
    [
        {"image": "../a.png"},
        {"image": "/a.png"},
        {"image": ""},
        {"image": 3},
        {"sha256": "short"},
        {"record": 7},
        {"box": [1, 2, 3]},
        {"box": [1, 2, 3, -4]},
        {"box": [1, 2, 3, True]},
        {"more": 1},
    ],
)
def test_a_wrong_entry_is_named_by_its_row(tmp_path: Path, changed: dict[str, Any]) -> None:
    right = {"image": "a.png", "sha256": "0" * 64, "record": None, "box": None}
    path = tmp_path / "manifest.jsonl"
    path.write_text(json.dumps(right) + "\n" + json.dumps({**right, "image": "b.png", **changed}), encoding="utf-8")
    with pytest.raises(DataError, match="row 2"):
        read_manifest(path)


# --- the command


@pytest.fixture
def command(source: Path, tmp_path: Path) -> list[str]:
    write_records(tmp_path / "records.jsonl", RECORDS)
    return [
        *("memorization", "embed", str(source), "--records", str(tmp_path / "records.jsonl")),
        *("--output", str(tmp_path / "out"), "--workers", "1", "--fields", *FIELDS),
    ]


def test_embed_command(command: list[str], source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (source / "broken.png").write_bytes(b"")
    assert main([*command, "--rates", "0", "50", "100"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{tmp_path / 'out' / 'r000'}: private text in 0 of 12 images",
        f"{tmp_path / 'out' / 'r050'}: private text in 6 of 12 images",
        f"{tmp_path / 'out' / 'r100'}: private text in 12 of 12 images",
        f"1 skipped, with the reasons in {tmp_path / 'out' / 'skipped.jsonl'}",
    ]
    run(source, tmp_path / "called")
    assert files(tmp_path / "out") == files(tmp_path / "called")


@pytest.mark.parametrize(
    "wrong",
    [
        ["--rates", "200"],
        ["--position", "above"],
        ["--fields", "password"],
        ["--font", "nowhere.ttf"],
        ["--workers", "0"],
        ["--size", "0"],
    ],
)
def test_a_mistake_is_told_in_one_line(
    command: list[str], capsys: pytest.CaptureFixture[str], wrong: list[str]
) -> None:
    assert main([*command, *wrong]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_folders_are_read_in_the_same_order_everywhere(source: Path) -> None:
    assert list(read_contents(source, 1).usable) == sorted(files(source))
