"""Maps of embeddings keep distances, and are the same for the same key."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import pytest

from privacy.errors import ConversionError
from privacy.passkey.keystream import Keystream
from privacy.passkey.transforms import AffineMap, Transform, glide, noisy, orthogonal

KEY, OTHER, WIDTH = bytes(range(32)), bytes(32), 24
ROWS = np.random.default_rng(0).normal(size=(50, WIDTH)) + 3.0


def distances(rows: np.ndarray) -> np.ndarray:
    return np.linalg.norm(rows[:, None] - rows[None], axis=2)


@pytest.mark.parametrize("transform", [Transform("glide"), Transform("glide", 7), Transform("orthogonal")])
def test_all_distances_stay(transform: Transform) -> None:
    mapped = transform.map(KEY, WIDTH, 2.0)(ROWS)
    assert np.abs(mapped - ROWS).max() > 1
    np.testing.assert_allclose(distances(mapped), distances(ROWS), atol=1e-12)


@pytest.mark.parametrize("transform", [Transform("glide", 3), Transform("orthogonal"), Transform("none")])
def test_the_inverse_undoes_it(transform: Transform) -> None:
    affine = transform.map(KEY, WIDTH, 2.0)
    np.testing.assert_allclose(affine.inverse()(affine(ROWS)), ROWS, atol=1e-12)


def test_a_glide_reflection_is_a_reflection_and_a_step_along_its_mirror() -> None:
    affine = glide(KEY, WIDTH, factor=1, scale=2.5)
    values, vectors = np.linalg.eigh(affine.matrix)
    np.testing.assert_allclose(values, [-1, *[1] * (WIDTH - 1)], atol=1e-12)
    normal = vectors[:, 0]
    assert abs(normal @ affine.offset) < 1e-12
    assert np.linalg.norm(affine.offset) == pytest.approx(2.5)


def test_a_repeated_one_reflects_in_as_many_mirrors() -> None:
    matrix = glide(KEY, WIDTH, factor=4, scale=1.0).matrix
    assert np.linalg.matrix_rank(matrix - np.eye(WIDTH), tol=1e-9) == 4
    assert np.linalg.det(matrix) == pytest.approx(1.0)


def test_it_is_one_after_another() -> None:
    first = glide(KEY, WIDTH, factor=1, scale=1.0)
    second = glide(KEY, WIDTH, factor=2, scale=1.0)
    alone = AffineMap(second.matrix @ first.matrix.T, second.offset - second.matrix @ first.matrix.T @ first.offset)
    assert np.linalg.matrix_rank(alone.matrix - np.eye(WIDTH), tol=1e-9) == 1
    assert np.linalg.norm(alone.offset) == pytest.approx(1.0)


def test_an_orthogonal_map_leaves_the_direction_of_all_ones() -> None:
    affine = orthogonal(KEY, WIDTH)
    np.testing.assert_allclose(affine.matrix @ affine.matrix.T, np.eye(WIDTH), atol=1e-12)
    np.testing.assert_allclose(affine.matrix @ np.ones(WIDTH), np.ones(WIDTH), atol=1e-12)
    np.testing.assert_allclose(affine(ROWS).mean(axis=1), ROWS.mean(axis=1))
    assert not affine.offset.any()


def test_orthogonal_maps_are_uniform() -> None:
    # Entries of a Haar matrix of n dimensions have mean 0 and variance 1/n; here n is 3, beside the direction of ones.
    maps = np.array([orthogonal(number.to_bytes(32, "big"), 4).matrix for number in range(2000)])
    centring = np.eye(4) - 0.25
    inner = maps - 0.25
    np.testing.assert_allclose(inner.mean(axis=0), np.zeros((4, 4)), atol=0.05)
    np.testing.assert_allclose((inner**2).mean(axis=0), np.outer(np.diag(centring), np.diag(centring)) / 3, atol=0.02)
    assert np.mean(np.linalg.det(maps) > 0) == pytest.approx(0.5, abs=0.05)


def test_the_same_key_gives_the_same_map_on_every_platform() -> None:
    np.testing.assert_allclose(
        Keystream(KEY).gaussians(4),
        [-0.6502757968488376, -1.2347888314021955, 0.29216068541688933, 1.0113121651019585],
        rtol=1e-12,
    )
    np.testing.assert_allclose(
        orthogonal(KEY, 5).matrix[0],
        [-0.27846885349201933, 0.6737695249759498, -0.20417117149088204, 0.18119981969522753, 0.6276706803117235],
        rtol=1e-9,
    )


def test_another_key_gives_another_map() -> None:
    for transform in (Transform("glide"), Transform("orthogonal")):
        difference = transform.map(KEY, WIDTH, 1.0).matrix - transform.map(OTHER, WIDTH, 1.0).matrix
        assert np.abs(difference).max() > 0.1


def test_gaussians_are_normal() -> None:
    numbers = Keystream(KEY).gaussians(200, 1000)
    assert numbers.shape == (200, 1000)
    moments = [np.mean(numbers**power) for power in (1, 2, 3, 4)]
    np.testing.assert_allclose(moments, [0, 1, 0, 3], atol=0.05)
    assert np.mean(np.abs(numbers) < 1) == pytest.approx(0.6827, abs=0.005)


def test_noise_is_a_share_of_each_row_s_length() -> None:
    rows = np.outer([1.0, 10.0, 0.0], np.ones(20_000))
    added = np.linalg.norm(noisy(Keystream(KEY), rows, 0.3) - rows, axis=1)
    np.testing.assert_allclose(added, 0.3 * np.linalg.norm(rows, axis=1), rtol=0.02)


def test_no_noise_changes_nothing() -> None:
    assert noisy(Keystream(KEY), ROWS, 0.0) is ROWS


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("spiral",), "is one of glide, orthogonal, none"),
        (("glide", 0), "not a whole number from 1 to 64"),
        (("glide", 65), "not a whole number from 1 to 64"),
        (("glide", True), "not a whole number"),
        (("orthogonal", 2), "the transform orthogonal has none"),
        (("glide", 1, -0.1), "noise is not a number from 0 to 1"),
        (("glide", 1, float("nan")), "noise is not a number"),
        (("none", 1, "0.1"), "noise is not a number"),
    ],
)
def test_what_cannot_be_is_refused(arguments: tuple[Any, ...], said: str) -> None:
    with pytest.raises(ConversionError, match=said):
        Transform(*arguments)


@pytest.mark.parametrize("transform", [Transform(), Transform("none"), Transform("glide", 5, 0.25)])
def test_a_transform_survives_json(transform: Transform) -> None:
    assert Transform.from_dict(asdict(transform)) == transform


@pytest.mark.parametrize("content", [None, [], {}, {"kind": "glide"}, {"kind": 3, "factor": 1, "noise": 0.0}])
def test_what_is_no_transform_is_refused(content: Any) -> None:
    with pytest.raises(ConversionError):
        Transform.from_dict(content)
