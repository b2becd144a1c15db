"""What a probe looks at: held-out images, each with a seen record drawn in and once more with an unseen one.

Records are paired, and a pair shares its images: image for image the classes differ in nothing but the record, and no
image joins one pair to another, so that folds can keep pairs apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from privacy.errors import DataError, MemorizationError
from privacy.memorization.drawing import Style
from privacy.memorization.embed import embed, folder_name
from privacy.memorization.folders import read_contents
from privacy.memorization.manifest import NAME, Entry, read_manifest
from privacy.memorization.probing import Layout
from privacy.memorization.records import FIELDS, PrivateRecord

_ALL = 100.0


@dataclass(frozen=True)
class View:
    """An image file with a record drawn in: which image it was, whether the record is a seen one, and its pair."""

    path: Path
    image: str
    record: PrivateRecord
    seen: bool
    pair: int


def draw_views(
    images: Path,
    seen: Sequence[PrivateRecord],
    unseen: Sequence[PrivateRecord],
    output: Path,
    *,
    images_per_record: int = 4,
    style: Style | None = None,
    fields: Sequence[str] = FIELDS,
    seed: int = 0,
    workers: int = 1,
) -> list[View]:
    """Draws records into the images of a folder: into `output`/seen the seen ones, into `output`/unseen the others.

    As many pairs are made as both lists have records, and as the images are enough for; the image in a view is encoded
    as `embed` does it. What is there already of an interrupted call stays.

    Raises:
        MemorizationError: a record is in both lists, there are too few images, or as `embed`.
        DataError: the images hold private records already, or as `embed`.
    """
    _check_disjoint(seen, unseen)
    if images_per_record < 1:
        raise MemorizationError("each record has to be drawn into one image at least")
    _check_plain(images)
    usable = len(read_contents(images, workers).usable)
    pairs = min(len(seen), len(unseen), usable // images_per_record)
    if pairs < 1:
        raise MemorizationError(f"{images}: {usable} images are fewer than {images_per_record} for one record")
    manifests = []
    for name, records in (("seen", seen), ("unseen", unseen)):
        embed(
            images,
            records[:pairs],
            output / name,
            rates=[_ALL],
            style=style,
            fields=fields,
            seed=seed,
            reuse=True,
            workers=workers,
        )
        folder = output / name / folder_name(_ALL)
        manifests.append((folder, {entry.image: entry for entry in read_manifest(folder / NAME)}))
    return _views(manifests, seen[:pairs], unseen[:pairs])


def layout_of(views: Sequence[View]) -> Layout:
    """The labels and groups of views for `privacy.memorization.probing`."""
    return Layout.of([view.seen for view in views], [view.pair for view in views], [view.image for view in views])


def _views(
    manifests: Sequence[tuple[Path, dict[str, Entry]]], seen: Sequence[PrivateRecord], unseen: Sequence[PrivateRecord]
) -> list[View]:
    """Both views of each image that could be drawn on with both of its records."""
    (seen_folder, seen_entries), (unseen_folder, unseen_entries) = manifests
    places = {record.user_id: place for records in (seen, unseen) for place, record in enumerate(records)}
    views = []
    for image in sorted(seen_entries.keys() & unseen_entries.keys()):
        one, other = places[seen_entries[image].record or ""], places[unseen_entries[image].record or ""]
        if one != other:
            raise MemorizationError(f"{seen_folder}: and {unseen_folder} were not drawn together")
        views.append(View(seen_folder / image, image, seen[one], True, one))
        views.append(View(unseen_folder / image, image, unseen[other], False, other))
    return views


def _check_disjoint(seen: Sequence[PrivateRecord], unseen: Sequence[PrivateRecord]) -> None:
    shared = {record.user_id for record in seen} & {record.user_id for record in unseen}
    if shared:
        raise MemorizationError(f"{len(shared)} records are both among the seen and the unseen ones")


def _check_plain(images: Path) -> None:
    """Where a manifest tells of private content in the images, a probe would read that."""
    if (images / NAME).is_file() and any(entry.record is not None for entry in read_manifest(images / NAME)):
        raise DataError(f"{images / NAME}: its images hold private records already: give those without")
