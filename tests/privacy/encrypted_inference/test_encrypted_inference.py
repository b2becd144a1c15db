"""The whole way: a client encrypts, a server classifies, the client decrypts what the network says in the clear."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from privacy.encrypted_inference import Client, Server, Weights, load_architecture, load_weights, shipped_folder
from privacy.encrypted_inference.client import LOGIT_ERROR
from privacy.encrypted_inference.data import LabelledImages, load_images
from privacy.encrypted_inference.model import FoldedNet
from privacy.encrypted_inference.packing import Packing
from privacy.encrypted_inference.ranges import LEAST_SPARE_BITS, spare_bits
from privacy.encrypted_inference.wire import BATCHED, PACKED


@pytest.mark.parametrize(("layout", "count"), [(PACKED, 3), (BATCHED, 40)])
def test_the_decrypted_logits_are_the_networks(
    client: Client, server: Server, digits: LabelledImages, weights: Weights, layout: str, count: int
) -> None:
    images = digits.pixels[:count]
    predictions = client.decrypt(server.classify(client.encrypt(images, layout)))
    expected = weights.logits(images)
    assert predictions.logits.shape == expected.shape
    assert np.abs(predictions.logits - expected).max() < 2 * LOGIT_ERROR
    assert predictions.labels == tuple(digits.labels[place] for place in predictions.logits.argmax(1))
    best = np.sort(expected, axis=1)
    clear = best[:, -1] - best[:, -2] > 4 * LOGIT_ERROR
    assert clear.mean() > 0.9
    assert (predictions.logits.argmax(1) == expected.argmax(1))[clear].all()


def test_more_images_than_fit_packed_are_batched(client: Client, server: Server, digits: LabelledImages) -> None:
    predictions = client.decrypt(server.classify(client.encrypt(digits.pixels[:65])))
    assert np.mean([int(label) for label in predictions.labels] == digits.classes[:65]) > 0.9


def test_the_same_image_never_encrypts_to_the_same_bytes(client: Client, digits: LabelledImages) -> None:
    assert client.encrypt(digits.pixels[:1]) != client.encrypt(digits.pixels[:1])


def test_the_torch_twin_says_what_the_weights_say(weights: Weights, digits: LabelledImages) -> None:
    images = digits.pixels[:50].astype(np.float64)
    with torch.no_grad():
        logits = FoldedNet.of_weights(weights)(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(logits, weights.logits(images), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["digits", "mnist"])
def test_shipped_weights_fit_scales_and_slots(name: str, random: np.random.Generator) -> None:
    weights = load_weights(name)
    Packing(weights.architecture, 4096)
    side = weights.architecture.side
    blank_and_full = np.stack([np.zeros((side, side)), np.ones((side, side)) * 0.3])
    assert spare_bits(weights, blank_and_full) >= LEAST_SPARE_BITS


def test_shipped_digits_are_accurate(weights: Weights, digits: LabelledImages) -> None:
    assert (weights.logits(digits.pixels).argmax(1) == digits.classes).mean() > 0.96


def mnist() -> LabelledImages:
    data = Path(os.environ.get("LATENTGUARD_DATA", Path(__file__).parents[4] / "shared" / "data"))
    folder = data / "mnist"
    if not folder.is_dir():
        pytest.skip(f"needs the MNIST idx files in {folder} (set LATENTGUARD_DATA)")
    return load_images(folder).part(slice(8000, None))


def test_shipped_mnist_reaches_its_accuracy_on_unseen_images() -> None:
    unseen = mnist()
    weights = load_weights("mnist")
    assert (weights.logits(unseen.pixels).argmax(1) == unseen.classes).mean() >= 0.975


def test_mnist_under_encryption_agrees_with_plaintext() -> None:
    unseen = mnist().part(slice(0, 12))
    client, keys = Client.generate(load_architecture("mnist"), "mnist")
    with Server({"mnist": shipped_folder("mnist")}) as server:
        server.register(keys)
        found = client.decrypt(server.classify(client.encrypt(unseen.pixels))).logits
    expected = load_weights("mnist").logits(unseen.pixels)
    assert (found.argmax(1) == expected.argmax(1)).all()
    assert np.abs(found - expected).max() < 4 * LOGIT_ERROR
