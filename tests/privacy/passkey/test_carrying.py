"""A map of the embeddings carried through a model: exactly where norms come first, nearly where they come last."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from privacy.errors import ConversionError
from privacy.passkey.carrying import can_carry, carry, readouts, take_back
from privacy.passkey.transforms import orthogonal

WIDTH = 32
IDS = torch.arange(4, 22).reshape(2, 9)
BERT_LIKE = {
    "vocab_size": 64,
    "hidden_size": WIDTH,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 40,
}
DISTILBERT = {"vocab_size": 64, "dim": WIDTH, "hidden_dim": 64, "n_layers": 2, "n_heads": 4}
T5 = {"vocab_size": 64, "d_model": WIDTH, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
CLIP = {**BERT_LIKE, "bos_token_id": 1, "eos_token_id": 2}


@pytest.fixture
def linear() -> Tensor:
    return torch.from_numpy(orthogonal(bytes(32), WIDTH).matrix.T.copy())


@pytest.fixture
def shift() -> Tensor:
    return torch.randn(WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def random_model(kind: Any, config: Any, *, gain: float | None = None) -> Any:
    """A small model with no two weights alike; all its norms have one gain if given, else random ones."""
    torch.manual_seed(0)
    model = kind(config).eval()
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            parameter.data += 0.1 * torch.randn_like(parameter)
        if gain is not None and "norm" in name.lower() and name.endswith("weight"):
            parameter.data.fill_(gain)
    return model


def carried(model: Any, linear: Tensor, shift: Tensor) -> Any:
    """A copy of the model whose embeddings are mapped, with the rest following."""
    copied = copy.deepcopy(model)
    if (head := copied.get_output_embeddings()) is not None:
        head.weight = torch.nn.Parameter(head.weight.detach().clone())
    carry(copied, linear, shift)
    rows = copied.get_input_embeddings().weight
    rows.data = (rows.data.double() @ linear + shift).float()
    return copied


def largest(first: Tensor, second: Tensor) -> float:
    return float((first - second).abs().max())


def states(model: Any) -> list[Tensor]:
    output = model(IDS, output_hidden_states=True)
    return [*output.hidden_states[:-1], getattr(output, "last_hidden_state", output.hidden_states[-1])]


@torch.inference_mode()
@pytest.mark.parametrize("feed_forward", ["relu", "gated-gelu"])
def test_an_encoder_decoder_of_t5_computes_the_same_logits(linear: Tensor, feed_forward: str) -> None:
    config = transformers.T5Config(**T5, feed_forward_proj=feed_forward, decoder_start_token_id=0)
    model = random_model(transformers.T5ForConditionalGeneration, config)
    same = carried(model, linear, torch.zeros(WIDTH))
    inputs = {"input_ids": IDS, "decoder_input_ids": IDS[:, :5]}
    assert largest(same(**inputs).logits, model(**inputs).logits) < 1e-4
    assert float(model(**inputs).logits.std()) > 0.1


@torch.inference_mode()
@pytest.mark.parametrize(
    ("kind", "config"),
    [
        (transformers.T5EncoderModel, transformers.T5Config(**T5)),
        (transformers.CLIPTextModel, transformers.CLIPTextConfig(**CLIP)),
    ],
)
def test_the_plain_states_are_read_out_exactly_where_norms_come_first(kind: Any, config: Any, linear: Tensor) -> None:
    model = random_model(kind, config)
    same = carried(model, linear, torch.zeros(WIDTH))
    for mapped, plain, back in zip(states(same), states(model), readouts(model, linear), strict=True):
        assert largest(mapped @ back.weight + back.bias, plain) < 1e-4
        assert largest(mapped, plain) > 0.01


@torch.inference_mode()
def test_the_shift_of_a_glide_reflection_is_taken_back_by_the_positions(linear: Tensor, shift: Tensor) -> None:
    model = random_model(transformers.CLIPTextModel, transformers.CLIPTextConfig(**CLIP))
    back = readouts(model, linear)[-1]
    last = carried(model, linear, shift)(IDS).last_hidden_state
    assert largest(last @ back.weight + back.bias, model(IDS).last_hidden_state) < 1e-4


NORM_LAST = [
    (transformers.BertModel, transformers.BertConfig(**BERT_LIKE)),
    (transformers.BertForSequenceClassification, transformers.BertConfig(**BERT_LIKE)),
    (transformers.BertForTokenClassification, transformers.BertConfig(**BERT_LIKE)),
    (transformers.BertForMaskedLM, transformers.BertConfig(**BERT_LIKE)),
    (transformers.RobertaForSequenceClassification, transformers.RobertaConfig(**BERT_LIKE)),
    (transformers.RobertaForTokenClassification, transformers.RobertaConfig(**BERT_LIKE)),
    (transformers.RobertaForMaskedLM, transformers.RobertaConfig(**BERT_LIKE)),
    (transformers.XLMRobertaModel, transformers.XLMRobertaConfig(**BERT_LIKE)),
    (transformers.MPNetForSequenceClassification, transformers.MPNetConfig(**BERT_LIKE)),
    (transformers.DistilBertForSequenceClassification, transformers.DistilBertConfig(**DISTILBERT)),
    (transformers.DistilBertForTokenClassification, transformers.DistilBertConfig(**DISTILBERT)),
    (transformers.DistilBertForQuestionAnswering, transformers.DistilBertConfig(**DISTILBERT)),
]


@torch.inference_mode()
@pytest.mark.parametrize(("kind", "config"), NORM_LAST, ids=lambda part: getattr(part, "__name__", ""))
def test_it_is_exact_where_norms_come_last_if_their_gains_are_even(
    kind: Any, config: Any, linear: Tensor, shift: Tensor
) -> None:
    model = random_model(kind, config, gain=0.7)
    same = carried(model, linear, shift)
    for mapped, plain, back in zip(states(same), states(model), readouts(model, linear), strict=True):
        assert largest(mapped @ back.weight + back.bias, plain) < 1e-4
    for name, plain in model(IDS).items():
        if "logits" in name:
            assert largest(same(IDS)[name], plain) < 1e-4


@torch.inference_mode()
def test_it_is_near_where_norms_come_last_with_uneven_gains(linear: Tensor, shift: Tensor) -> None:
    model = random_model(transformers.BertModel, transformers.BertConfig(**BERT_LIKE))
    mapped_alone = copy.deepcopy(model)
    rows = mapped_alone.embeddings.word_embeddings.weight
    rows.data = (rows.data.double() @ linear + shift).float()
    back = readouts(model, linear)[-1]
    plain = model(IDS).last_hidden_state
    off = largest(carried(model, linear, shift)(IDS).last_hidden_state @ back.weight + back.bias, plain)
    assert off < largest(mapped_alone(IDS).last_hidden_state, plain) / 3


@torch.inference_mode()
@pytest.mark.parametrize(
    ("kind", "config"),
    [
        (transformers.BertModel, transformers.BertConfig(**BERT_LIKE)),
        (transformers.CLIPTextModel, transformers.CLIPTextConfig(**CLIP)),
    ],
)
def test_a_shift_that_was_taken_back_leaves_the_model_what_it_was(kind: Any, config: Any, shift: Tensor) -> None:
    model = random_model(kind, config)
    shifted = copy.deepcopy(model)
    shifted.get_input_embeddings().weight.add_(shift.float())
    assert largest(shifted(IDS).last_hidden_state, model(IDS).last_hidden_state) > 0.1
    take_back(shifted, shift)
    assert largest(shifted(IDS).last_hidden_state, model(IDS).last_hidden_state) < 1e-4


def test_t5_can_take_no_shift_back() -> None:
    with pytest.raises(ConversionError, match="no embeddings of positions"):
        take_back(transformers.T5EncoderModel(transformers.T5Config(**T5)), torch.ones(WIDTH))


def test_an_architecture_that_it_does_not_know_is_refused(linear: Tensor) -> None:
    model = transformers.AlbertModel(transformers.AlbertConfig(**BERT_LIKE, embedding_size=WIDTH))
    assert not can_carry(model, "orthogonal")
    with pytest.raises(ConversionError, match="AlbertModel: a map can't be carried"):
        carry(model, linear, torch.zeros(WIDTH))


def test_a_head_that_it_does_not_know_is_refused(linear: Tensor) -> None:
    model = transformers.BertForNextSentencePrediction(transformers.BertConfig(**BERT_LIKE))
    with pytest.raises(ConversionError, match="what its head reads isn't known"):
        carry(model, linear, torch.zeros(WIDTH))


def test_output_rows_that_are_tied_to_the_embeddings_are_refused(linear: Tensor) -> None:
    model = transformers.T5ForConditionalGeneration(transformers.T5Config(**T5, decoder_start_token_id=0))
    with pytest.raises(ConversionError, match="tied"):
        carry(model, linear, torch.zeros(WIDTH))
