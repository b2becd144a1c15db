"""One weights folder made of two: the mapping layer of one training run beside the prompt head of another.

The two parts share no weights, and each learns best from something else: the mapping layer from how a data set uses its
concepts, the head from harm in as many manners as there are. Each part brings the weight in the score that was fitted
for it on prompts which its own training didn't see.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from latentguard.errors import WeightsError
from latentguard.heads import Heads
from latentguard.policy import checked_threshold
from latentguard.weights import Weights, load_weights, save_weights


def join(mapping: str | Path, prompt_head: str | Path, target: str | Path, *, threshold: float, command: str) -> Path:
    """Write weights with the mapping layer, scale, lexicon and bank of one folder and the prompt head of another.

    The score's constant is the mean of both. ``threshold`` is the new guard's; set it by ``calibrate``.

    Raises:
        WeightsError: a folder can't be read, holds no heads, or the two don't belong to the same encoder and layers;
            ``target`` is there already or can't be written.
        PolicyError: ``threshold`` is no number.
    """
    first, second = load_weights(mapping), load_weights(prompt_head)
    heads, other = _heads(first, mapping), _heads(second, prompt_head)
    if (first.config.encoder, first.config.layers) != (second.config.encoder, second.config.layers):
        raise WeightsError(f"{prompt_head}: not for the encoder and layers of {mapping}")
    if Path(target).exists():
        raise WeightsError(f"{target}: is there already")
    own, its = heads.combination, other.combination
    joined = replace(own, prompt=its.prompt, bias=round((own.bias + its.bias) / 2, 4))
    config = replace(
        first.config,
        threshold=checked_threshold(threshold),
        prompt_head=second.config.prompt_head,
        combination=joined,
        training={
            "command": command,
            "data": {**first.config.training.get("data", {}), **second.config.training.get("data", {})},
            "mapping": dict(first.config.training),
            "prompt_head": dict(second.config.training),
        },
    )
    made = Heads(other.prompt_head, heads.scale, joined, heads.rarity)
    return save_weights(target, first.mapping, config, first.concepts, _card(first, second, command), made)


def _heads(weights: Weights, folder: str | Path) -> Heads:
    if weights.heads is None:
        raise WeightsError(f"{folder}: holds a mapping layer alone, without a prompt head")
    return weights.heads


def _card(first: Weights, second: Weights, command: str) -> str:
    parts = "\n".join(
        f"- {name}: `{weights.config.training.get('command', 'unknown')}`{_reached(weights, figure)}"
        for name, weights, figure in (
            ("mapping layer, scale and lexicon", first, "auc"),
            ("prompt head", second, "auc_prompts"),
        )
    )
    return f"""# A mapping layer for `{first.config.encoder}` with a prompt head and a lexical head beside it

Joined of two training runs of latentguard. Licence: Apache-2.0.

## How it was made

```
{command}
```

{parts}

Each part has the weight in the score that was fitted for it in its own run; data, recipes and held-out figures of both
are in `config.json`.
"""


def _reached(weights: Weights, figure: str) -> str:
    """The AUC that a part's own run reached on concepts held out of it, where its config has it."""
    reached = weights.config.training.get("held_out_concepts", {}).get(figure)
    return "" if reached is None else f"; AUC {reached:.3f} on the concepts held out of it"
