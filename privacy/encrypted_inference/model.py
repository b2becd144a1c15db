"""The network in PyTorch: one to train, with batch norm, and the plaintext twin of what the server evaluates."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from privacy.encrypted_inference.weights import Architecture, Layer, Weights

# The largest integer of a weight. The evaluation of batches adds up ciphertexts once per integer, so few are fast.
LEVELS = {"convolution": 31, "hidden": 31, "output": 127}

# What a kernel's largest weight is scaled to, and with it the step on which the scale of batched queries depends.
_LARGEST_KERNEL = 0.5
_TINY = 1e-6


class SquareNet(nn.Module):
    """Convolution, batch norm, square, dense, batch norm, square, dense: the network as it is trained first."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.convolution = nn.Conv2d(1, architecture.channels, architecture.kernel, architecture.stride)
        self.convolution_norm = nn.BatchNorm2d(architecture.channels)
        self.hidden = nn.Linear(architecture.features, architecture.hidden)
        self.hidden_norm = nn.BatchNorm1d(architecture.hidden)
        self.dropout = nn.Dropout(0.1)
        self.output = nn.Linear(architecture.hidden, architecture.classes)
        nn.init.normal_(self.output.weight, std=0.05)
        with torch.no_grad():  # squares grow fast: batch norm starts small
            self.convolution_norm.weight.fill_(0.7)
            self.hidden_norm.weight.fill_(0.7)

    def forward(self, images: Tensor) -> Tensor:
        """The logits [B, classes] of images [B, side, side]."""
        first = self.convolution_norm(self.convolution(images[:, None])).square()
        second = self.hidden_norm(self.hidden(self.dropout(first.flatten(1)))).square()
        logits: Tensor = self.output(second)
        return logits


class FoldedNet(nn.Module):
    """The network with its batch norms folded away and its weights rounded: the plaintext twin.

    What it computes is what the server computes on ciphertexts, but for the noise of CKKS. Gradients pass the rounding
    as if it weren't there (the straight-through estimator), so it can be trained further.
    """

    def __init__(self, architecture: Architecture, layers: dict[str, FoldedLayer]) -> None:
        super().__init__()
        self.architecture = architecture
        self.weights = nn.ParameterDict({name: layer.weight for name, layer in layers.items()})
        self.biases = nn.ParameterDict({name: layer.bias for name, layer in layers.items()})
        self.steps = {name: layer.step for name, layer in layers.items()}

    @classmethod
    def fold(cls, net: SquareNet) -> FoldedNet:
        """`net` in evaluation mode, its batch norms folded into the layers before them."""
        with torch.no_grad():
            first, first_bias = _folded(net.convolution.weight.flatten(1), net.convolution.bias, net.convolution_norm)
            second, second_bias = _folded(net.hidden.weight, net.hidden.bias, net.hidden_norm)
            last, last_bias = net.output.weight, net.output.bias
            first, first_bias, squares = _even(first, first_bias, _LARGEST_KERNEL)
            second = second * squares.repeat_interleave(net.architecture.windows)
            largest = float(second.abs().amax(1).clamp(min=_TINY).log().mean().exp())
            second, second_bias, squares = _even(second, second_bias, largest)
            layers = {
                "convolution": FoldedLayer.of("convolution", first, first_bias),
                "hidden": FoldedLayer.of("hidden", second, second_bias),
                "output": FoldedLayer.of("output", last * squares, last_bias),
            }
        return cls(net.architecture, layers)

    @classmethod
    def of_weights(cls, weights: Weights) -> FoldedNet:
        """The twin of a trained network, in float64."""
        layers = {
            name: FoldedLayer(
                nn.Parameter(torch.from_numpy(layer.weight)), nn.Parameter(torch.from_numpy(layer.bias)), layer.step
            )
            for name, layer in (
                ("convolution", weights.convolution),
                ("hidden", weights.hidden),
                ("output", weights.output),
            )
        }
        return cls(weights.architecture, layers).double()

    def forward(self, images: Tensor) -> Tensor:
        """The logits [B, classes] of images [B, side, side]."""
        shape = self.architecture
        kernels = self._rounded("convolution").view(shape.channels, 1, shape.kernel, shape.kernel)
        first = functional.conv2d(images[:, None], kernels, self.biases["convolution"], shape.stride).square()
        second = functional.linear(first.flatten(1), self._rounded("hidden"), self.biases["hidden"]).square()
        logits: Tensor = functional.linear(second, self._rounded("output"), self.biases["output"])
        return logits

    def export(self) -> Weights:
        """The weights as whole numbers and steps."""
        layers = {}
        for name, weight in self.weights.items():
            integers = _integers(name, weight.detach(), self.steps[name]).numpy().astype(np.int16)
            layers[name] = Layer(integers, self.steps[name], self.biases[name].detach().double().numpy())
        return Weights(self.architecture, **layers)

    def _rounded(self, name: str) -> Tensor:
        weight = self.weights[name]
        rounding = _integers(name, weight, self.steps[name]) * self.steps[name] - weight
        rounded: Tensor = weight + rounding.detach()
        return rounded


@dataclass(frozen=True)
class FoldedLayer:
    """Weights [outputs, inputs] and biases [outputs] that are rounded to multiples of ``step``."""

    weight: nn.Parameter
    bias: nn.Parameter
    step: float

    @classmethod
    def of(cls, name: str, weight: Tensor, bias: Tensor) -> FoldedLayer:
        """The step is the one of 60 with the least squared error of rounding."""
        largest = float(weight.abs().max())
        steps = [largest / LEVELS[name] * share for share in np.linspace(0.3, 1, 60)]
        errors = [float((_integers(name, weight, step) * step - weight).square().sum()) for step in steps]
        return cls(nn.Parameter(weight.clone()), nn.Parameter(bias.clone()), steps[int(np.argmin(errors))])


def _integers(name: str, weight: Tensor, step: float) -> Tensor:
    return torch.clamp(torch.round(weight / step), -LEVELS[name], LEVELS[name])


def _folded(weight: Tensor, bias: Tensor | None, norm: nn.BatchNorm1d | nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """A linear layer [outputs, inputs] and the batch norm after it, as one linear layer."""
    mean, variance = norm.running_mean, norm.running_var
    if mean is None or variance is None or bias is None:
        raise TypeError("the layer has no bias, or its batch norm no running statistics")
    factor = norm.weight / torch.sqrt(variance + norm.eps)
    return weight * factor[:, None], (bias - mean) * factor + norm.bias


def _even(weight: Tensor, bias: Tensor, largest: float) -> tuple[Tensor, Tensor, Tensor]:
    """The layer with each row scaled to that largest weight, and what its squared outputs then are to be multiplied by.

    One step serves all rows, and so none of them wastes its integers.
    """
    factor = largest / weight.abs().amax(1).clamp(min=_TINY)
    return weight * factor[:, None], bias * factor, factor.pow(-2)
