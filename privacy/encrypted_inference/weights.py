"""The network's shape and its weights: whole numbers times one step a layer, folded and ready for either evaluation.

The network is the square-activation convolutional net of CryptoNets (Gilad-Bachrach et al., ICML 2016): convolution,
square, dense, square, dense. Its shape is public, since a client packs images by it; its weights are the server's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from privacy.errors import ImageSizeError, ModelError
from privacy.files import atomic_path

Floats = npt.NDArray[np.float64]

MAX_CLASSES = 16
_MAX_SIDE = 32
_SHIPPED = Path(__file__).resolve().parent / "shipped"
_TENSORS = tuple(f"{layer}.{part}" for layer in ("convolution", "hidden", "output") for part in ("weight", "bias"))


@dataclass(frozen=True)
class Architecture:
    """The shape of a network, which client and server share.

    ``side`` pixels square goes in, one channel of values from 0 to 1. The convolution has ``channels`` kernels of
    ``kernel`` pixels square, set ``stride`` apart without padding; the first dense layer has ``hidden`` outputs, the
    second one for each of ``labels``.
    """

    side: int
    kernel: int
    stride: int
    channels: int
    hidden: int
    labels: tuple[str, ...]

    def __post_init__(self) -> None:
        for name, value, low, high in (
            ("side", self.side, 2, _MAX_SIDE),
            ("kernel", self.kernel, 1, self.side),
            ("stride", self.stride, 1, self.side),
            ("labels", len(self.labels), 2, MAX_CLASSES),
            ("channels", self.channels, 1, 64),
            ("hidden", self.hidden, 1, 256),
        ):
            if not low <= value <= high:
                raise ModelError(f"architecture: {name} is {value}, not in {low} to {high}")
        for name, value in (("channels", self.channels), ("hidden", self.hidden)):
            if value & (value - 1):
                raise ModelError(f"architecture: {name} is {value}, not a power of two")

    @property
    def grid(self) -> int:
        """Places of the kernel along one side."""
        return (self.side - self.kernel) // self.stride + 1

    @property
    def windows(self) -> int:
        """Places of the kernel in the image."""
        return self.grid**2

    @property
    def taps(self) -> int:
        """Pixels under the kernel."""
        return self.kernel**2

    @property
    def features(self) -> int:
        """Outputs of the convolution."""
        return self.channels * self.windows

    @property
    def classes(self) -> int:
        return len(self.labels)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"labels": list(self.labels)}

    @classmethod
    def from_dict(cls, described: object) -> Architecture:
        """Raises ModelError unless `described` is what `as_dict` gives, and of a possible shape."""
        if not isinstance(described, Mapping) or set(described) != set(cls.__dataclass_fields__):
            raise ModelError("architecture: not an object with side, kernel, stride, channels, hidden and labels")
        sizes = {name: described[name] for name in cls.__dataclass_fields__ if name != "labels"}
        labels = described["labels"]
        if any(type(size) is not int for size in sizes.values()):
            raise ModelError("architecture: a size isn't a whole number")
        if not isinstance(labels, list | tuple) or not all(isinstance(label, str) for label in labels):
            raise ModelError("architecture: labels isn't a list of texts")
        return cls(**sizes, labels=tuple(labels))


@dataclass(frozen=True, eq=False)
class Layer:
    """A linear layer: ``integers`` [outputs, inputs] times ``step``, plus ``bias`` [outputs]."""

    integers: npt.NDArray[np.int16]
    step: float
    bias: Floats

    @property
    def weight(self) -> Floats:
        """The weights as they are used, float64 [outputs, inputs]."""
        return self.integers.astype(np.float64) * self.step


@dataclass(frozen=True, eq=False)
class Weights:
    """A trained network: convolution [channels, kernel²], hidden [hidden, features], output [classes, hidden].

    A feature's place is channel · windows + window, windows row by row, as in PyTorch's flattened convolution.
    """

    architecture: Architecture
    convolution: Layer
    hidden: Layer
    output: Layer

    def __post_init__(self) -> None:
        shape = self.architecture
        for name, layer, wanted in (
            ("convolution", self.convolution, (shape.channels, shape.taps)),
            ("hidden", self.hidden, (shape.hidden, shape.features)),
            ("output", self.output, (shape.classes, shape.hidden)),
        ):
            if layer.integers.shape != wanted or layer.bias.shape != wanted[:1]:
                raise ModelError(f"weights: {name} has shape {layer.integers.shape}, not {wanted}")
            if not layer.integers.any(axis=1).all():  # nothing encrypted would be left of such an output
                raise ModelError(f"weights: {name} has an output whose weights are all zero")
            if not (np.isfinite(layer.bias).all() and 0 < layer.step < 1):
                raise ModelError(f"weights: {name} has a bias that isn't finite, or a step not between 0 and 1")

    def logits(self, images: npt.ArrayLike) -> Floats:
        """What the network says of `images` [B, side, side] without encryption, float64 [B, classes]."""
        pixels = np.asarray(images, dtype=np.float64)
        windows = windows_of(self.architecture, pixels)  # [B, taps, windows]
        first = np.einsum("ct,btw->bcw", self.convolution.weight, windows) + self.convolution.bias[:, None]
        squared = np.square(first.reshape(len(pixels), -1))
        second = np.square(squared @ self.hidden.weight.T + self.hidden.bias)
        logits: Floats = second @ self.output.weight.T + self.output.bias
        return logits


def windows_of(shape: Architecture, images: Floats) -> Floats:
    """The pixels under the kernel at each of its places: [B, side, side] to [B, taps, windows].

    Raises:
        ImageSizeError: the images are of another size.
    """
    if images.ndim != 3 or images.shape[1:] != (shape.side, shape.side):
        raise ImageSizeError(f"images: of shape {images.shape}, where [B, {shape.side}, {shape.side}] is awaited")
    along = np.arange(shape.grid) * shape.stride
    rows = along[:, None, None, None] + np.arange(shape.kernel)[None, None, :, None]
    columns = along[None, :, None, None] + np.arange(shape.kernel)[None, None, None, :]
    patches = images[:, rows, columns]  # [B, grid, grid, kernel, kernel]
    windows: Floats = patches.reshape(len(images), shape.windows, shape.taps).transpose(0, 2, 1)
    return windows


def save_weights(weights: Weights, folder: Path, metrics: Mapping[str, Any]) -> None:
    """Writes ``config.json`` (shape, steps, `metrics`) and ``model.safetensors`` to `folder`, which is made if needed.

    Raises:
        DataError: the files can't be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    layers = {"convolution": weights.convolution, "hidden": weights.hidden, "output": weights.output}
    tensors = {f"{name}.weight": layer.integers for name, layer in layers.items()}
    tensors |= {f"{name}.bias": layer.bias for name, layer in layers.items()}  # type: ignore[misc]
    config = {
        "architecture": weights.architecture.as_dict(),
        "steps": {name: layer.step for name, layer in layers.items()},
        "metrics": dict(metrics),
    }
    write_public(folder / "model.safetensors", save(tensors))
    write_public(folder / "config.json", (json.dumps(config, indent=2) + "\n").encode())


def write_public(path: Path, content: bytes) -> None:
    """Writes a file of a model, which unlike keys others may read; raises DataError if it can't be written."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
        temporary.chmod(0o644)


def load_architecture(name_or_folder: str | Path) -> Architecture:
    """The public part of a model alone, which is all that a client needs.

    Raises:
        ModelError: there is no such model, or its ``config.json`` isn't one.
    """
    return _architecture(_folder(name_or_folder))


def load_weights(name_or_folder: str | Path) -> Weights:
    """A shipped model by name (``digits``, ``mnist``), or one that `save_weights` wrote.

    Raises:
        ModelError: there is no such model, or it is damaged.
    """
    folder = _folder(name_or_folder)
    steps = _config(folder).get("steps")
    path = folder / "model.safetensors"
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path}: can't be read as safetensors") from error
    if set(tensors) != set(_TENSORS) or not isinstance(steps, dict):
        raise ModelError(f"{folder}: its tensors or steps aren't those of this network")
    try:
        layers = {
            name: Layer(
                tensors[f"{name}.weight"].astype(np.int16, casting="safe"),
                float(steps[name]),
                tensors[f"{name}.bias"].astype(np.float64),
            )
            for name in ("convolution", "hidden", "output")
        }
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{folder}: a step is missing, or the weights aren't whole numbers") from error
    return Weights(_architecture(folder), **layers)


def shipped_folder(name: str) -> Path:
    """The folder of a model that comes with the package.

    Raises:
        ModelError: there is none of that name.
    """
    if name not in shipped_names():
        raise ModelError(f"{name}: no model of that name comes with the package ({', '.join(shipped_names())})")
    return _SHIPPED / name


def shipped_names() -> tuple[str, ...]:
    """The names of the models that come with the package."""
    return tuple(sorted(entry.name for entry in _SHIPPED.iterdir() if (entry / "config.json").is_file()))


def model_folder(name_or_folder: str | Path) -> Path:
    """The folder of a shipped model, by name, or the one that was given; its name is what the model is served as.

    Raises:
        ModelError: there is no such model.
    """
    return _folder(name_or_folder).resolve()


def _folder(name_or_folder: str | Path) -> Path:
    shipped = _SHIPPED / str(name_or_folder)
    folder = shipped if str(name_or_folder) in shipped_names() else Path(name_or_folder)
    if not (folder / "config.json").is_file():
        known = ", ".join(shipped_names())
        raise ModelError(f"{name_or_folder}: no model of that name ({known}) and no folder with a config.json")
    return folder


def _architecture(folder: Path) -> Architecture:
    return Architecture.from_dict(_config(folder).get("architecture"))


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: can't be read as JSON") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path}: isn't an object")
    return config
