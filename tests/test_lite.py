"""The guard in numpy against the guard in PyTorch: the same weights, encoder and bank, and the same verdicts."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from models import random_mapping, save_tiny_weights
from safetensors.torch import load_file, save
from torch import Tensor

from latentguard import (
    ConceptEntry,
    ConceptError,
    EncoderError,
    LatentGuard,
    PolicyError,
    PromptError,
    WeightsError,
)
from latentguard.arrays import NUMPY, chosen_device
from latentguard.bank import ConceptBank
from latentguard.encoders import load_encoder
from latentguard.encoders.base import TokenStates
from latentguard.encoders.embedded import EmbeddedEncoder
from latentguard.fingerprint import model_fingerprint
from latentguard.lite.layers import gelu, softmax
from latentguard.mapping import MappingLayer, with_pooled
from latentguard.records import read_prompts
from latentguard.shipped import shipped_path
from latentguard.weights import WeightsConfig, load_weights, save_weights

SAMPLE = [row.prompt for row in read_prompts(shipped_path("datasets") / "sample_prompts.txt")]
LONG = " and ".join(SAMPLE)  # several windows
WITHIN = 1e-3


@pytest.fixture(scope="module")
def full() -> LatentGuard:
    return LatentGuard.from_pretrained(device="cpu")


@pytest.fixture(scope="module")
def made() -> LatentGuard:
    """Made once; tests take :func:`light`, a fork of it."""
    return LatentGuard.from_pretrained(device="numpy")


@pytest.fixture
def light(made: LatentGuard) -> LatentGuard:
    return made.fork()


@pytest.fixture(scope="module")
def prompts(full: LatentGuard) -> list[str]:
    """Of all kinds: the sample, the concepts alone and in a sentence, with digits and marks, very long."""
    names = full.concepts.names
    sentences = [f"a photo of {a}, {b} in the background" for a, b in zip(names[::4], names[2::4], strict=False)]
    return [*SAMPLE, *names[::3], *sentences, LONG, "!", "7 7 7", "Ｂeheading", "b.e.h.e.a.d.i.n.g"]


def assert_same(light: LatentGuard, full: LatentGuard, prompts: list[str]) -> None:
    """The same verdicts: each score of each concept within a thousandth, and what follows from the scores."""
    for ours, theirs in zip(light.check_batch(prompts), full.check_batch(prompts), strict=True):
        np.testing.assert_allclose(ours._scores, theirs._scores, atol=WITHIN, rtol=0)
        assert ours.threshold == theirs.threshold
        assert ours.probability == pytest.approx(theirs.probability, abs=WITHIN)
        if abs(theirs.margin) > WITHIN:
            assert ours.decision == theirs.decision
        first, second = (score for _, score in theirs.scores(2))
        if first - second > WITHIN:
            assert (ours.concept, ours.category) == (theirs.concept, theirs.category)


# --- the whole guard


def test_verdicts_are_those_of_the_full_guard(light: LatentGuard, full: LatentGuard, prompts: list[str]) -> None:
    assert len(prompts) > 300
    assert_same(light, full, prompts)
    np.testing.assert_allclose(light.score(prompts), full.score(prompts), atol=WITHIN, rtol=0)


def test_a_changed_bank_scores_as_the_full_guards(light: LatentGuard, full: LatentGuard) -> None:
    full = full.fork()
    for guard in (light, full):
        guard.concepts.add("golden retriever", category="house rules")
        guard.concepts.extend([ConceptEntry("fencing", threshold=5.0), "red wine"])
        guard.concepts.remove("beheading")
        guard.concepts.remove_category("hate")
    assert light.concepts.names == full.concepts.names
    assert_same(light, full, [*SAMPLE, "a golden retriever on a beach", "a beheading", "fencing with red wine"])
    assert light.check("a golden retriever on a beach").concept == "golden retriever"


def test_adding_and_removing_leaves_every_score_as_it_was(light: LatentGuard) -> None:
    before = light.score(SAMPLE)
    light.concepts.extend(["golden retriever", "a door"])
    light.concepts.remove("golden retriever")
    light.concepts.remove("a door")
    assert np.array_equal(light.score(SAMPLE), before)


def test_layers_and_heads_do_not_depend_on_the_batch_by_a_single_bit(light: LatentGuard) -> None:
    windows = [light.encoder.windows(prompt)[0] for prompt in SAMPLE]
    z, mask = light.mapping.attended(light.encoder.encode_windows(windows))
    queries = light.concepts.snapshot.queries
    together, harm = light.mapping.score(queries, z, mask), light.heads.harm(z, mask)
    for i, window in enumerate(windows):
        length = 1 + len(window.ids)
        alone = z[i : i + 1, :length], mask[i : i + 1, :length]
        assert np.array_equal(light.mapping.score(queries, *alone)[0], together[i])
        assert np.array_equal(light.heads.harm(*alone)[0], harm[i])


def test_a_score_does_not_depend_on_the_batch(light: LatentGuard) -> None:
    """But for the last bit of the encoder's mean over the tokens, as in the full guard."""
    together = [verdict._scores for verdict in light.check_batch([LONG, *SAMPLE])]
    alone = [light.check(prompt)._scores for prompt in [LONG, *SAMPLE]]
    np.testing.assert_allclose(np.stack(together), np.stack(alone), atol=1e-5, rtol=0)


@pytest.mark.parametrize("categories", [{"violence": None}, {"violence": 9.0, "hate": None, "sexual": None}])
def test_policies_count_as_in_the_full_guard(
    light: LatentGuard, full: LatentGuard, categories: dict[str, float | None]
) -> None:
    full = full.fork()
    for guard in (light, full):
        guard.policy = replace(guard.policy, categories=categories, flag_margin=0.5)
        guard.concepts.add("anything at all")  # of no category: its harm is that of the categories left on
    assert_same(light, full, SAMPLE)


def test_harm_counts_for_nothing_when_every_category_is_off(light: LatentGuard, full: LatentGuard) -> None:
    full = full.fork()
    for guard in (light, full):
        guard.policy = replace(guard.policy, categories=dict.fromkeys(guard.concepts.categories))
        guard.concepts.add("golden retriever")
    assert_same(light, full, [*SAMPLE, "a golden retriever"])


@pytest.mark.parametrize("prompt", ["a photo of a beheading", SAMPLE[1], LONG], ids=["named", "described", "windows"])
def test_explanations_are_those_of_the_full_guard(light: LatentGuard, full: LatentGuard, prompt: str) -> None:
    ours, theirs = light.check(prompt).explain(), full.check(prompt).explain()
    assert [token.text for token in ours.tokens] == [token.text for token in theirs.tokens]
    for token, other in zip(ours.tokens, theirs.tokens, strict=True):
        assert token.contribution == pytest.approx(other.contribution, abs=WITHIN)
    assert ours.whole_prompt == pytest.approx(theirs.whole_prompt, abs=WITHIN)
    assert ours.score == pytest.approx(light.check(prompt).score, abs=WITHIN)


def test_it_fails_closed(light: LatentGuard) -> None:
    with pytest.raises(PromptError):
        light.check("")
    states = light.encoder.encode(["a red wine"])
    states.hidden[0, 1] = np.nan
    with pytest.raises(EncoderError):
        light.check_states(states, ["a red wine"])
    light.policy = replace(light.policy, categories=dict.fromkeys(light.concepts.categories))
    with pytest.raises(PolicyError):
        light.check("a red wine")
    for name in light.concepts.names:
        light.concepts.remove(name)
    with pytest.raises(ConceptError):
        light.check("a red wine")


def test_states_from_elsewhere_are_scored(light: LatentGuard) -> None:
    states = light.encoder.encode(["a beheading"])
    expected = pytest.approx(light.check("a beheading").score, abs=1e-5)
    assert light.check_states(states, ["a beheading"])[0].score == expected
    as_tensors = TokenStates(*(torch.from_numpy(array) for array in (states.hidden, states.mask, states.pooled)))
    assert light.check_states(as_tensors, ["a beheading"])[0].score == expected


def test_nothing_in_it_is_a_tensor(light: LatentGuard) -> None:
    snapshot = light.concepts.snapshot
    assert {type(array) for array in (snapshot.embeddings, snapshot.queries.query, snapshot.scoring.moments)} == {
        np.ndarray
    }
    assert type(light.encoder.encode(["a"]).hidden) is np.ndarray


def test_both_guards_have_one_fingerprint(light: LatentGuard, full: LatentGuard) -> None:
    assert model_fingerprint(light) == model_fingerprint(full)


def test_a_saved_bank_is_read_by_the_other_kind(light: LatentGuard, full: LatentGuard, tmp_path: Path) -> None:
    light.concepts.save(tmp_path / "ours.safetensors")
    full.concepts.save(tmp_path / "theirs.safetensors")
    ours = ConceptBank.load(tmp_path / "theirs.safetensors", light.encoder, light.mapping, light.heads)
    theirs = ConceptBank.load(tmp_path / "ours.safetensors", full.encoder, full.mapping, full.heads)
    np.testing.assert_allclose(ours.snapshot.embeddings, theirs.snapshot.embeddings.numpy(), atol=1e-6, rtol=0)
    np.testing.assert_allclose(ours.snapshot.queries.direction, theirs.snapshot.queries.direction, atol=1e-4, rtol=0)


# --- a mapping layer alone, of other sizes


@pytest.fixture(scope="module")
def tiny_pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[LatentGuard, ...]:
    """Light and full guard of a small random layer without heads, on one layer of the embedded encoder."""
    folder = save_tiny_weights(tmp_path_factory.mktemp("weights"), "minilm-l6", mapping=random_mapping(384))
    return tuple(LatentGuard.from_pretrained(folder, device=device) for device in ("numpy", "cpu"))


def test_a_layer_without_heads_scores_the_same(tiny_pair: tuple[LatentGuard, LatentGuard]) -> None:
    ours, theirs = (guard.check_batch(SAMPLE) for guard in tiny_pair)
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one._scores, other._scores, atol=WITHIN, rtol=0)
        assert one.probability is None
        assert one.explain().score == pytest.approx(one.score, abs=WITHIN)


# --- the formulas, on made-up numbers


def numpy_layer(mapping: MappingLayer, folder: Path) -> MappingLayer:
    """The same layer in numpy, by way of a weights folder."""
    save_weights(folder, mapping, WeightsConfig("minilm-l6", mapping.shape, 0.0), [ConceptEntry("x")], "# Random\n")
    return load_weights(folder, NUMPY).mapping


@pytest.mark.parametrize("scale", [1.0, 40.0, 400.0], ids=["usual", "large", "huge"])
@pytest.mark.parametrize("length", [1, 5, 60])
def test_the_layer_scores_as_pytorchs(tmp_path: Path, length: int, scale: float) -> None:
    """Long prompts and short ones go different ways, and so do logits that an exponential can't take."""
    mapping = random_mapping()
    light = numpy_layer(mapping, tmp_path / "weights")
    torch.manual_seed(length)
    hidden, mask = scale * torch.randn(3, length, 32), torch.rand(3, length) < 0.7
    mask[:, 0] = True
    hidden[~mask] = torch.nan
    states, concepts = TokenStates(hidden, mask, scale * torch.randn(3, 32)), torch.randn(9, 32)
    expected = mapping.score(mapping.queries(concepts), *with_pooled(states)).numpy()
    scores = light.score(light.queries(concepts.numpy()), *light.attended(states))
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, expected, atol=WITHIN, rtol=0)


def test_an_empty_bank_has_no_scores(tmp_path: Path) -> None:
    light = numpy_layer(random_mapping(), tmp_path / "weights")
    states = TokenStates(np.zeros((2, 3, 32), np.float32), np.ones((2, 3), bool), np.zeros((2, 32), np.float32))
    queries = light.queries(np.empty((0, 32), dtype=np.float32))
    assert light.score(queries, *light.attended(states)).shape == (2, 0)


def test_gelu_and_softmax_are_pytorchs() -> None:
    x = np.linspace(-12, 12, 4001, dtype=np.float32)
    np.testing.assert_allclose(gelu(x), torch.nn.functional.gelu(torch.from_numpy(x)).numpy(), atol=2e-6, rtol=0)
    shares = softmax(np.array([[1.0, -np.inf, 3.0]], dtype=np.float32), axis=1)
    np.testing.assert_allclose(shares, torch.tensor([[1.0, -torch.inf, 3.0]]).softmax(1).numpy(), atol=1e-7)


# --- weights that can't be used


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("to_key.bias", None),
        ("to_key.bias", torch.zeros(3)),
        ("to_key.bias", torch.full((32,), torch.nan)),
        ("to_key.bias", torch.zeros(32, dtype=torch.bfloat16)),
        ("extra", torch.zeros(3)),
        ("prompt_head.value.bias", torch.zeros(3)),
    ],
    ids=["missing", "misshapen", "not finite", "of a type numpy lacks", "unknown", "of heads"],
)
def test_weights_that_do_not_fit_are_refused(tmp_path: Path, name: str, tensor: Tensor | None) -> None:
    folder = tmp_path / "weights"
    numpy_layer(random_mapping(), folder)
    state = load_file(folder / "model.safetensors") | ({} if tensor is None else {name: tensor})
    if tensor is None:
        del state[name]
    content = save(state)
    (folder / "model.safetensors").write_bytes(content)
    described = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(described | {"sha256": hashlib.sha256(content).hexdigest()}))
    with pytest.raises(WeightsError, match=r"model\.safetensors: "):
        load_weights(folder, NUMPY)


def test_a_file_that_is_no_safetensors_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    numpy_layer(random_mapping(), folder)
    (folder / "model.safetensors").write_bytes(b"none")
    described = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(described | {"sha256": hashlib.sha256(b"none").hexdigest()}))
    with pytest.raises(WeightsError, match="not a safetensors file"):
        load_weights(folder, NUMPY)


# --- what the device numpy can't do


def test_numpy_is_a_device_of_its_own() -> None:
    assert chosen_device("numpy") is chosen_device(NUMPY) is NUMPY
    assert str(load_encoder(device="numpy").device) == "numpy"


@pytest.mark.parametrize("encoder", ["hf:nobody/nothing", "open_clip:ViT-B-32:"])
def test_other_encoders_need_pytorch(encoder: str) -> None:
    with pytest.raises(EncoderError, match="runs in PyTorch alone"):
        load_encoder(encoder, device="numpy")


def test_the_encoders_torch_backend_gives_no_numpy() -> None:
    with pytest.raises(EncoderError, match="no numpy arrays"):
        EmbeddedEncoder(device=NUMPY, backend="torch")


def test_a_search_without_pytorch_finds_what_scoring_every_concept_finds(light: LatentGuard) -> None:
    searching = LatentGuard(light.encoder, light.mapping, light.concepts, light.policy, light.heads, search=1)
    expected, found = light.check_batch(SAMPLE), searching.check_batch(SAMPLE)
    assert [verdict.decision for verdict in found] == [verdict.decision for verdict in expected]
    blocked = [(ours, theirs) for ours, theirs in zip(found, expected, strict=True) if theirs.blocked]
    assert blocked
    for ours, theirs in blocked:
        assert ours.concept == theirs.concept
        assert ours.score == pytest.approx(theirs.score, abs=1e-4)
