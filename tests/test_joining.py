"""Weights joined of two training runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from models import random_heads, random_mapping

from latentguard.encoders.base import TextEncoder
from latentguard.errors import WeightsError
from latentguard.heads import Heads
from latentguard.joining import join
from latentguard.records import ConceptEntry
from latentguard.weights import WeightsConfig, load_weights, save_weights


def folder_of(place: Path, encoder: TextEncoder, seed: int, layers: tuple[int, ...] | None = None) -> Path:
    """Weights with heads that differ from seed to seed."""
    mapping, heads = random_mapping(seed=seed), random_heads(seed=seed)
    combination = replace(heads.combination, prompt=1.0 + seed, concept=2.0 + seed, bias=-1.0 - seed)
    heads = Heads(heads.prompt_head, heads.scale, combination, heads.rarity)
    config = WeightsConfig(
        encoder.name,
        mapping.shape,
        0.5,
        layers=layers,
        prompt_head=heads.prompt_head.shape,
        combination=combination,
        training={
            "command": f"train {seed}",
            "data": {f"{seed}.csv": "hash"},
            "held_out_concepts": {"auc": 0.5 + seed / 10},
        },
    )
    return save_weights(place, mapping, config, [ConceptEntry(f"concept {seed}")], "# W\n", heads)


def test_each_part_comes_from_its_folder_with_its_weight(tiny_encoder: TextEncoder, tmp_path: Path) -> None:
    a, b = (folder_of(tmp_path / str(seed), tiny_encoder, seed) for seed in (0, 1))
    made = load_weights(join(a, b, tmp_path / "joined", threshold=0.25, command="join a b"))
    first, second = load_weights(a), load_weights(b)
    assert made.heads is not None
    assert first.heads is not None
    assert second.heads is not None
    for module, origin in (
        (made.mapping, first.mapping),
        (made.heads.scale, first.heads.scale),
        (made.heads.prompt_head, second.heads.prompt_head),
    ):
        assert all(torch.equal(t, origin.state_dict()[name]) for name, t in module.state_dict().items())
    assert made.heads.combination == replace(first.heads.combination, prompt=2.0, bias=-1.5)
    assert made.config.threshold == 0.25
    assert made.concepts == first.concepts
    assert made.config.training["mapping"]["command"] == "train 0"
    assert made.config.training["prompt_head"]["command"] == "train 1"
    assert set(made.config.training["data"]) == {"0.csv", "1.csv"}
    card = (tmp_path / "joined" / "README.md").read_text()
    assert "train 0" in card
    assert "train 1" in card
    assert "AUC 0.500 on the concepts held out of it" in card


def test_what_does_not_belong_together_is_refused(
    tiny_encoder: TextEncoder, tiny_weights: Path, tmp_path: Path
) -> None:
    a = folder_of(tmp_path / "a", tiny_encoder, 0)
    other = folder_of(tmp_path / "other", tiny_encoder, 1, layers=(1,))
    with pytest.raises(WeightsError, match="not for the encoder and layers"):
        join(a, other, tmp_path / "joined", threshold=0.0, command="")
    with pytest.raises(WeightsError, match="a mapping layer alone"):
        join(a, tiny_weights, tmp_path / "joined", threshold=0.0, command="")
    with pytest.raises(WeightsError, match="is there already"):
        join(a, a, a, threshold=0.0, command="")
    assert not (tmp_path / "joined").exists()
