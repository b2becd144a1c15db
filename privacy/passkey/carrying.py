"""Carrying a map of the embeddings through a model, so that the rest of it speaks the mapped language too.

With its token embeddings mapped by x -> x R + t a model reads nonsense, until it is trained anew. Much of that training
is known beforehand. R leaves the all-ones direction where it is, so a layer norm's centring and scaling commute with
it: LN(x R) = LN(x) R, but for the norm's own weight g and bias b, which act on single coordinates. So the states that
travel along the residual stream are kept mapped and without g and b, and whoever reads them has R and g and b folded
into its weights:

    reads    h W + c            becomes    s (R' diag(g) W) + (b W + c)          exact
    writes   f W + c            becomes    f (W R) + c R                         exact

In T5 and CLIP, whose norms stand before what reads them, that is all, and the carried model computes what the plain
one did. In BERT and its relatives the stream itself is what comes out of a norm: where it goes on, diag(g) would have
to be carried too, and is only approximated by a number; `privacy.passkey.adapting` trains away the rest.

What comes out is mapped as well. `readouts` tells how the plain states are had from it.

Folding R into a model hides nothing: who has the plain model can solve for R in any of the folded weights, as he can
find it by comparing embeddings (docs/passkey.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from privacy.errors import ConversionError

_LAYER_NORM_FIRST = frozenset({"clip", "clip_text_model"})
_RMS_NORM_FIRST = frozenset({"mt5", "t5", "umt5"})
_NORM_LAST = frozenset({"bert", "camembert", "distilbert", "mpnet", "roberta", "xlm-roberta"})

_HEADS_ON_STATES = (  # the first of these that a model has reads its last states
    "cls.predictions.transform.dense",
    "lm_head.dense",
    "vocab_transform",
    "pre_classifier",
    "classifier.dense",
    "qa_outputs",
)


class Readout(NamedTuple):
    """How plain states are had from those of a carried model: ``states @ weight + bias``, [D, D] and [D]."""

    weight: Tensor
    bias: Tensor


@dataclass(frozen=True)
class _Block:
    """Half a layer: what reads the stream, behind which norm, and what writes to it.

    Norms stand before the readers (T5, CLIP) or after the writer has been added to the stream (BERT).
    """

    norm: nn.Module
    readers: Sequence[nn.Linear]
    writer: nn.Linear


def can_carry(model: Any, kind: str) -> bool:
    """Whether a transformers model's architecture is known well enough to follow a map of this `Transform` kind."""
    if kind == "orthogonal":
        # A projection of CLIP has no bias that could take the final norm's.
        known = _LAYER_NORM_FIRST | _RMS_NORM_FIRST | _NORM_LAST
        return _kind(model) in known and not hasattr(model, "text_projection")
    return kind == "glide" and _kind(model) in _LAYER_NORM_FIRST | _NORM_LAST


def maps_output_rows(model: Any) -> bool:
    """Whether `carry` folds the map into a model's output embeddings too, so that they aren't the plain ones."""
    return _kind(model) in _RMS_NORM_FIRST


@torch.no_grad()
def carry(model: Any, linear: Tensor, shift: Tensor) -> None:
    """Folds the map x -> x ``linear`` + ``shift`` of the token embeddings into the rest of ``model``, in place.

    Args:
        model: a transformers model whose token embeddings are, or will be, mapped; they are left alone here. Its output
            embeddings, if it has any, must not be tied to them.
        linear: [D, D] orthogonal, leaves the all-ones vector where it is.
        shift: [D]; only where something beside the token embeddings is added to the stream (positions).

    Raises:
        ConversionError: an architecture or a head that isn't known here.
    """
    kind = _kind(model)
    if not can_carry(model, "orthogonal"):
        raise ConversionError(f"{type(model).__name__}: a map can't be carried through this architecture")
    linear, shift = linear.double(), shift.double()
    if kind in _NORM_LAST:
        _carry_norm_last(model, linear, shift)
    elif kind in _LAYER_NORM_FIRST:
        _carry_clip(_body(model), linear, shift)
    else:
        _carry_t5(model, linear, shift)


@torch.no_grad()
def take_back(model: Any, shift: Tensor) -> None:
    """Subtracts ``shift`` [D] where positions are added to the token embeddings, to which it was or will be added.

    What is left of a glide reflection is its reflections, each of which changes one direction of all D.

    Raises:
        ConversionError: an architecture without positions among its embeddings, or one that isn't known here.
    """
    if not can_carry(model, "glide"):
        raise ConversionError(f"{type(model).__name__}: has no embeddings of positions that could take a shift back")
    embeddings = _body(model).embeddings
    clip = _kind(model) in _LAYER_NORM_FIRST
    positions = embeddings.position_embedding if clip else embeddings.position_embeddings
    positions.weight.sub_(shift.to(positions.weight))


@torch.no_grad()
def readouts(model: Any, linear: Tensor) -> list[Readout]:
    """For each of a plain encoder's hidden states, embeddings first, how it is had from the carried model's.

    Exact for T5 and CLIP encoders, approximate for BERT and its relatives until the carried model is adapted.
    """
    kind, body = _kind(model), _body(model)
    back = linear.double().T
    width = back.shape[0]
    plain = Readout(back.float(), torch.zeros(width))
    if kind in _NORM_LAST:
        norms: list[nn.Module] = [_first_norm(body), *(layer[1].norm for layer in _norm_last_layers(body))]
        return [_readout(norm, back) for norm in norms]
    if kind in _LAYER_NORM_FIRST:
        return [plain] * body.config.num_hidden_layers + [_readout(body.final_layer_norm, back)]
    encoder = body.encoder
    return [plain] * body.config.num_layers + [_readout(encoder.final_layer_norm, back)]


def _readout(norm: nn.Module, back: Tensor) -> Readout:
    gain, bias = _gain(norm), _bias(norm)
    return Readout((back * gain).float(), bias.float())


def _carry_norm_last(model: Any, linear: Tensor, shift: Tensor) -> None:
    body = _body(model)
    embeddings = body.embeddings
    for name in ("position_embeddings", "token_type_embeddings"):
        if (table := getattr(embeddings, name, None)) is not None:
            table.weight.copy_(table.weight.double() @ linear)
    take_back(model, shift)
    gain, bias = _freed(_first_norm(body))
    for layer in _norm_last_layers(body):
        for block in layer:
            for reader in block.readers:
                _read(reader, linear, gain, bias)
            # The stream goes on as s, where the plain one has diag(g) s + b: the number nearest to g is divided out
            # of what is added to it, since the norm that follows doesn't mind.
            _write(block.writer, linear, scale=float(gain.sum() / (gain * gain).sum()), bias=bias)
            gain, bias = _freed(block.norm)
    for head in _heads(model, body):
        _read(head, linear, gain, bias)


def _carry_clip(body: Any, linear: Tensor, shift: Tensor) -> None:
    positions = body.embeddings.position_embedding.weight
    positions.copy_(positions.double() @ linear)
    take_back(body, shift)
    for layer in body.encoder.layers:
        attention, perceptron = layer.self_attn, layer.mlp
        readers = (attention.q_proj, attention.k_proj, attention.v_proj)
        _carry_norm_first(_Block(layer.layer_norm1, readers, attention.out_proj), linear)
        _carry_norm_first(_Block(layer.layer_norm2, (perceptron.fc1,), perceptron.fc2), linear)
    _freed(body.final_layer_norm)


def _carry_t5(model: Any, linear: Tensor, shift: Tensor) -> None:
    if bool(shift.any()):
        raise ConversionError(f"{type(model).__name__}: nothing beside the token embeddings could take the shift back")
    body = _body(model)
    decoder = getattr(body, "decoder", None)
    for block in _t5_blocks(body.encoder):
        _carry_norm_first(block, linear)
    gain, _ = _freed(body.encoder.final_layer_norm)
    if decoder is None:
        return
    for layer in decoder.block:
        cross = layer.layer[1].EncDecAttention
        for reader in (cross.k, cross.v):
            _read(reader, linear, gain, None)
    for block in _t5_blocks(decoder):
        _carry_norm_first(block, linear)
    gain, _ = _freed(decoder.final_layer_norm)
    if (head := model.get_output_embeddings()) is not None:
        if head.weight is model.get_input_embeddings().weight:
            raise ConversionError(f"{type(model).__name__}: its output embeddings are tied to its token embeddings")
        _read(head, linear, gain, None)


def _t5_blocks(stack: Any) -> Iterator[_Block]:
    for layer in stack.block:
        *attentions, last = layer.layer
        for number, part in enumerate(attentions):
            attention = part.SelfAttention if number == 0 else part.EncDecAttention
            # Keys and values of the second attention are read from the encoder, not from this stream.
            readers = [attention.q, attention.k, attention.v] if number == 0 else [attention.q]
            yield _Block(part.layer_norm, readers, attention.o)
        dense = last.DenseReluDense
        readers = [dense.wi_0, dense.wi_1] if hasattr(dense, "wi_0") else [dense.wi]
        yield _Block(last.layer_norm, readers, dense.wo)


def _norm_last_layers(body: Any) -> list[tuple[_Block, _Block]]:
    if _kind(body) == "distilbert":
        return [
            (
                _Block(
                    layer.sa_layer_norm,
                    (layer.attention.q_lin, layer.attention.k_lin, layer.attention.v_lin),
                    layer.attention.out_lin,
                ),
                _Block(layer.output_layer_norm, (layer.ffn.lin1,), layer.ffn.lin2),
            )
            for layer in body.transformer.layer
        ]
    layers = []
    for layer in body.encoder.layer:
        if _kind(body) == "mpnet":
            inner = layer.attention.attn
            attention = _Block(layer.attention.LayerNorm, (inner.q, inner.k, inner.v), inner.o)
        else:
            inner, out = layer.attention.self, layer.attention.output
            attention = _Block(out.LayerNorm, (inner.query, inner.key, inner.value), out.dense)
        dense = _Block(layer.output.LayerNorm, (layer.intermediate.dense,), layer.output.dense)
        layers.append((attention, dense))
    return layers


def _heads(model: Any, body: Any) -> list[nn.Linear]:
    """What reads the last states of a BERT-like model: its pooler and the head on top of it."""
    heads: list[nn.Linear] = []
    pooler = getattr(body, "pooler", None)
    if pooler is not None:
        heads.append(pooler.dense)
    if model is body:
        return heads
    modules = dict(model.named_modules())
    head = next((modules[name] for name in _HEADS_ON_STATES if name in modules), None)
    if head is None and pooler is None:
        head = modules.get("classifier")
    if head is None and pooler is not None and isinstance(modules.get("classifier"), nn.Linear):
        return heads  # it reads what the pooler gives
    if not isinstance(head, nn.Linear):
        raise ConversionError(f"{type(model).__name__}: what its head reads isn't known here")
    return [*heads, head]


def _carry_norm_first(block: _Block, linear: Tensor) -> None:
    gain, bias = _freed(block.norm)
    for reader in block.readers:
        _read(reader, linear, gain, bias)
    _write(block.writer, linear)


def _read(reader: nn.Linear, linear: Tensor, gain: Tensor, bias: Tensor | None) -> None:
    """`reader` from here on takes mapped states that lack the norm's ``gain`` and ``bias``."""
    weight = reader.weight.double()  # [out, in]
    if reader.bias is not None and bias is not None:
        reader.bias.add_((weight @ bias).to(reader.bias.dtype))
    reader.weight.copy_((weight * gain) @ linear)


def _write(writer: nn.Linear, linear: Tensor, scale: float = 1.0, bias: Tensor | None = None) -> None:
    """`writer` from here on adds mapped states to the stream, times ``scale``, and a ``bias`` of the plain stream."""
    writer.weight.copy_(scale * (linear.T @ writer.weight.double()))
    if writer.bias is not None:
        whole = writer.bias.double() if bias is None else writer.bias.double() + bias
        writer.bias.copy_(scale * (whole @ linear))


def _freed(norm: Any) -> tuple[Tensor, Tensor]:
    """The gain and bias [D] of a norm, which from here on has none."""
    gain, bias = _gain(norm), _bias(norm)
    norm.weight.fill_(1.0)
    if getattr(norm, "bias", None) is not None:
        norm.bias.zero_()
    return gain, bias


def _gain(norm: Any) -> Tensor:
    gain: Tensor = norm.weight.detach().double().clone()
    return gain


def _bias(norm: Any) -> Tensor:
    bias = getattr(norm, "bias", None)
    return torch.zeros_like(_gain(norm)) if bias is None else bias.detach().double().clone()


def _first_norm(body: Any) -> nn.Module:
    norm: nn.Module = body.embeddings.LayerNorm
    return norm


def _kind(model: Any) -> str:
    kind: str = model.config.model_type
    return kind


def _body(model: Any) -> Any:
    """The transformer beneath a head; a CLIP text tower; the model itself if it has no head."""
    return getattr(model, model.base_model_prefix, model)
