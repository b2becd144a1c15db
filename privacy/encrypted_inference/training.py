"""Training on plaintext: augment, stop early, fold batch norm, go on with rounded weights, measure, draw, save."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from privacy.encrypted_inference.data import LabelledImages
from privacy.encrypted_inference.model import FoldedNet, SquareNet
from privacy.encrypted_inference.ranges import MOST_LOGIT, largest_values
from privacy.encrypted_inference.weights import Architecture, Layer, Weights, save_weights, write_public
from privacy.errors import DataError


@dataclass(frozen=True)
class Recipe:
    """How to train.

    ``patience`` epochs without a better validation loss end a stage; a share of the training images, ``validation``, is
    held out for that and never trained on. Images are shifted by up to ``shift`` of their side, turned by up to
    ``turn`` degrees, stretched and slanted by up to ``stretch``.
    """

    epochs: int = 120
    rounded_epochs: int = 20
    patience: int = 50
    batch: int = 128
    learning_rate: float = 3e-3
    weight_decay: float = 1e-4
    validation: float = 0.1
    shift: float = 0.05
    turn: float = 10.0
    stretch: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.epochs, self.rounded_epochs, self.patience, self.batch) < 1:
            raise DataError("training: epochs, patience and batch have to be at least 1")
        if not 0 < self.validation < 1 or self.learning_rate <= 0:
            raise DataError("training: the validation share has to lie between 0 and 1, the learning rate above 0")


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to, for the learning curve."""

    stage: str
    training_loss: float
    validation_loss: float
    validation_accuracy: float


@dataclass(frozen=True, eq=False)
class Trained:
    """Weights, the curve that led to them, and the accuracy on the validation images."""

    weights: Weights
    history: tuple[Epoch, ...]
    validation_accuracy: float


def train(architecture: Architecture, data: LabelledImages, recipe: Recipe | None = None) -> Trained:
    """Trains on `data`, of which a share is held out to stop early by.

    Raises:
        DataError: there are too few images, or they aren't of the architecture's size.
    """
    recipe = recipe or Recipe()
    if data.pixels.shape[1:] != (architecture.side, architecture.side):
        raise DataError(f"training: the images are {data.pixels.shape[1:]}, the architecture takes {architecture.side}")
    generator = torch.Generator().manual_seed(recipe.seed)
    order = torch.randperm(len(data), generator=generator).numpy()
    held_out = round(len(data) * recipe.validation)
    if min(held_out, len(data) - held_out) < 2:
        raise DataError(f"training: {len(data)} images are too few to hold out a share of {recipe.validation}")
    validation, rest = data.part(order[:held_out]), data.part(order[held_out:])

    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        net = SquareNet(architecture)
        history = list(_stage("free", net, rest, validation, recipe, recipe.epochs, recipe.learning_rate, generator))
        folded = FoldedNet.fold(net.eval())
        history += _stage(
            "rounded", folded, rest, validation, recipe, recipe.rounded_epochs, recipe.learning_rate / 500, generator
        )
    weights = _within_range(folded.export(), rest)
    return Trained(weights, tuple(history), accuracy(weights, validation))


def accuracy(weights: Weights, data: LabelledImages) -> float:
    """The share of `data` that the network without encryption labels rightly."""
    return float((weights.logits(data.pixels).argmax(1) == data.classes).mean())


def save_run(trained: Trained, folder: Path, figures: dict[str, Any], recipe: Recipe) -> None:
    """Writes weights, figures, the history and a picture of the curve to `folder`.

    Raises:
        DataError: a file can't be written.
    """
    metrics = figures | {"validation_accuracy": trained.validation_accuracy, "recipe": asdict(recipe)}
    save_weights(trained.weights, folder, metrics)
    _draw(trained.history, folder / "curves.png")


def _within_range(weights: Weights, data: LabelledImages) -> Weights:
    """The same network with its logits made smaller if need be, which changes no label."""
    largest = largest_values(weights, data.pixels)[2]
    factor = min(1.0, MOST_LOGIT / largest)
    output = Layer(weights.output.integers, weights.output.step * factor, weights.output.bias * factor)
    return replace(weights, output=output)


def _stage(
    name: str,
    net: nn.Module,
    data: LabelledImages,
    validation: LabelledImages,
    recipe: Recipe,
    epochs: int,
    learning_rate: float,
    generator: torch.Generator,
) -> Iterator[Epoch]:
    """Trains `net`, and leaves it with the weights of its best epoch, or those it came with."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=learning_rate, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    pixels, classes = torch.from_numpy(data.pixels), torch.from_numpy(data.classes)
    best, best_state, since = _measure(net, validation)[0], _state(net), 0
    with tqdm(range(epochs), desc=name, unit="epoch", disable=None) as progress:
        for _ in progress:
            net.train()
            losses = []
            order = torch.randperm(len(data), generator=generator)
            for start in range(0, len(data) - 1, recipe.batch):  # a last image alone has no spread for batch norm
                batch = order[start : start + recipe.batch]
                logits = net(_augmented(pixels[batch], recipe, generator))
                loss = functional.cross_entropy(logits, classes[batch], label_smoothing=0.02)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                nn.utils.clip_grad_norm_(net.parameters(), 1.0)
                optimizer.step()
                losses.append(loss.item())
            schedule.step()
            held_out_loss, held_out_accuracy = _measure(net, validation)
            yield Epoch(name, float(np.mean(losses)), held_out_loss, held_out_accuracy)
            progress.set_postfix(loss=f"{held_out_loss:.4f}", accuracy=f"{held_out_accuracy:.4f}")
            since += 1
            if held_out_loss < best:
                best, since = held_out_loss, 0
                best_state = _state(net)
            if since == recipe.patience:
                break
    if not math.isfinite(best):
        raise DataError("training: the loss was never finite; try a smaller learning rate")
    net.load_state_dict(best_state)


def _state(net: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in net.state_dict().items()}


@torch.no_grad()
def _measure(net: nn.Module, data: LabelledImages) -> tuple[float, float]:
    net.eval()
    classes = torch.from_numpy(data.classes)
    logits = net(torch.from_numpy(data.pixels))
    return functional.cross_entropy(logits, classes).item(), (logits.argmax(1) == classes).float().mean().item()


def _augmented(images: Tensor, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """Each image [B, side, side] turned, stretched, slanted and shifted a little, by chance."""
    count, side = len(images), images.shape[1]

    def spread(size: float) -> Tensor:
        return (torch.rand(count, generator=generator) * 2 - 1) * size

    angle = spread(math.radians(recipe.turn))
    wide, high, slant = 1 + spread(recipe.stretch), 1 + spread(recipe.stretch), spread(recipe.stretch)
    cosine, sine = torch.cos(angle), torch.sin(angle)
    across = torch.stack([cosine * wide, -sine * high + slant, spread(2 * recipe.shift)], 1)
    down = torch.stack([sine * wide, cosine * high, spread(2 * recipe.shift)], 1)
    grid = functional.affine_grid(torch.stack([across, down], 1), [count, 1, side, side], align_corners=False)
    return functional.grid_sample(images[:, None], grid, align_corners=False)[:, 0]


def _draw(history: tuple[Epoch, ...], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    left = figure.subplots()
    right = left.twinx()
    epochs = range(1, len(history) + 1)
    lines = left.plot(epochs, [epoch.training_loss for epoch in history], color="#555555", label="training loss")
    lines += left.plot(epochs, [epoch.validation_loss for epoch in history], color="#c0392b", label="validation loss")
    lines += right.plot(
        epochs, [epoch.validation_accuracy for epoch in history], color="#2471a3", label="validation accuracy"
    )
    rounded = sum(epoch.stage == "free" for epoch in history)
    left.axvline(rounded + 0.5, color="#555555", linestyle=":", linewidth=1)
    left.set(xlabel="epoch (right of the dotted line: with rounded weights)", ylabel="cross-entropy", yscale="log")
    right.set_ylabel("accuracy")
    figure.legend(lines, [str(line.get_label()) for line in lines], loc="outside lower center", ncols=3)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110)
    write_public(path, picture.getvalue())
