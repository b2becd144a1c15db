"""A transformers model whose tensors with a row per token are known: loaded, encrypted in place, and written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from privacy.errors import ConversionError
from privacy.passkey.carrying import carry, take_back
from privacy.passkey.keys import Subkeys
from privacy.passkey.keystream import Keystream
from privacy.passkey.tokenizer_files import first_line
from privacy.passkey.transforms import Transform, noisy

_BLOCK = 4096  # rows that are mapped at once, in float64

# What of a configuration is ids without being named …token_id.
_ID_LISTS = ("bad_words_ids", "force_words_ids", "suppress_tokens", "begin_suppress_tokens")
# What of it is text: the prompts of T5's tasks. The client puts them before its text, so no server needs them.
_TEXTS = ("prefix", "task_specific_params")


class TextModel:
    """A transformers model and its tensors with a row per token.

    model: the transformers one. rows: how many ids there are. embeddings: its tensors [V, D] of token embeddings, each
    once, whatever else shares it.
    """

    def __init__(self, model: Any, missing: frozenset[str]) -> None:
        self.model = model
        self._missing = missing
        embeddings = list(_embeddings(model))
        if not embeddings:
            raise ConversionError(f"{type(model).__name__}: has no token embeddings that are known here")
        if len({each.num_embeddings for each in embeddings}) > 1:
            raise ConversionError(f"{type(model).__name__}: has more than one vocabulary")
        self.rows: int = embeddings[0].num_embeddings
        self.embeddings: list[nn.Parameter] = _unique(each.weight for each in embeddings)
        self._output_modules = [each for _, each in _outputs(model, self.rows)]
        self._biases = _unique(_biases(model, self.rows))
        self._refuse_unknown()

    @classmethod
    def load(cls, source: str | Path) -> TextModel:
        """The model of a folder or hub name, as the architecture that its configuration names.

        Raises:
            ConversionError: it can't be read, isn't in safetensors, or its code isn't part of transformers.
        """
        try:
            kind = _architecture(transformers.AutoConfig.from_pretrained(source))
            model, report = kind.from_pretrained(source, output_loading_info=True, use_safetensors=True, dtype="auto")
        except ConversionError as error:
            raise ConversionError(f"{source}: {error}") from None
        except Exception as error:  # transformers lets through whatever its many parsers raise
            raise ConversionError(f"{source}: its model can't be read: {first_line(error)}") from error
        return cls(model.eval(), frozenset(report["missing_keys"]))

    @property
    def outputs(self) -> list[nn.Parameter]:
        """The tensors [V, D] whose rows give each token's logit."""
        return _unique(each.weight for each in self._output_modules)

    def untie(self) -> bool:
        """Gives output rows that are the embeddings themselves a tensor of their own; returns whether there were any.

        T5 scales the states that it compares with tied rows, and takes the tie's absence in its configuration for that
        of the scale, so the scale goes into the rows.
        """
        tied = [each for each in self._output_modules if any(each.weight is one for one in self.embeddings)]
        config = self.model.config
        scaled = getattr(config, "scale_decoder_outputs", False)
        for module in tied:
            rows = module.weight.detach().clone()
            module.weight = nn.Parameter(rows * config.d_model**-0.5 if scaled else rows)
        if tied:
            config.tie_word_embeddings = False
            if scaled:
                config.scale_decoder_outputs = False
        return bool(tied)

    @torch.no_grad()
    def encrypt(self, new: NDArray[np.int64], transform: Transform, keys: Subkeys) -> None:
        """Maps the embeddings, and puts the rows of all tensors where `new` [V] says.

        Raises:
            ConversionError: the model needs an order of its ids that `new` doesn't keep.
        """
        highest = any(_goes_by_highest_id(each.config.to_dict()) for _, each in _models(self.model))
        if highest and new[-1] != self.rows - 1:
            raise ConversionError("a text ends at its highest id for this model, and that is no special token here")
        places = torch.from_numpy(new)
        if transform.changes_rows:
            self._map(transform, keys)
        for tensor in _unique([*self.embeddings, *self.outputs]):
            tensor[places] = tensor.clone()
        for bias in self._biases:
            bias[..., places] = bias.clone()

    def _map(self, transform: Transform, keys: Subkeys) -> None:
        first = self.embeddings[0]
        scale = float(first.double().norm(dim=1).mean())
        affine, keystream = transform.map(keys.transform, first.shape[1], scale), Keystream(keys.noise)
        if transform.maps_states:
            carry(self.model, torch.from_numpy(affine.matrix.T), torch.from_numpy(affine.offset))
        elif transform.carried:
            take_back(self.model, torch.from_numpy(affine.offset))
        for tensor in self.embeddings:
            blocks = torch.split(tensor, _BLOCK)
            for block in tqdm(blocks, desc="embeddings", unit="block", disable=None, leave=False):
                rows = noisy(keystream, block.double().numpy(), transform.noise)
                block.copy_(torch.from_numpy(affine(rows)))

    def save(self, folder: Path, new: NDArray[np.int64]) -> None:
        """Writes model.safetensors and the configurations, in which ids are mapped and texts left out."""
        state = {name: tensor for name, tensor in self.model.state_dict().items() if name not in self._missing}
        if not getattr(self.model.config, "tie_word_embeddings", False):
            # With nothing tied any more, whoever loads it expects each tensor that shared rows under its own name.
            state = {name: tensor.clone() for name, tensor in state.items()}
        self.model.save_pretrained(folder, state_dict=state, max_shard_size="1TB")
        # The safetensors library writes for its user alone; nothing here is secret, and the server may be another one.
        shutil.copymode(folder / "config.json", folder / "model.safetensors")
        for name in ("config.json", "generation_config.json"):
            if (folder / name).is_file():
                self._rewrite(folder / name, new)

    def _rewrite(self, path: Path, new: NDArray[np.int64]) -> None:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.get("stop_strings"):
            raise ConversionError("its generation stops at strings, which a server that reads no text can't find")
        content = _with_mapped_ids(content, new)
        if hasattr(self.model.config, "scale_decoder_outputs") and path.name == "config.json":
            content["tie_word_embeddings"] = self.model.config.scale_decoder_outputs
        path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8", newline="\n")

    def _refuse_unknown(self) -> None:
        """A tensor of one row per token that nobody permutes would make the model wrong, or tell the order of ids."""
        known = {each.data_ptr() for each in (*self.embeddings, *self.outputs, *self._biases)}
        for name, tensor in self.model.state_dict().items():
            if tensor.data_ptr() in known:
                if name in self._missing:
                    raise ConversionError(f"its files lack {name}")
            elif self.rows in tensor.shape:
                raise ConversionError(f"{name}: has a row for each token, and what it does is not known here")


def _architecture(config: Any) -> Any:
    """The class that the configuration names, or the plain one for its kind of model if it names none."""
    names = config.architectures or []
    if not names:
        return transformers.AutoModel
    kind = getattr(transformers, names[0], None)
    if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
        raise ConversionError(f"its architecture {names[0]} is not part of transformers")
    return kind


def _embeddings(model: Any) -> Iterator[nn.Embedding]:
    """The token embeddings of the model and of the models inside it."""
    for _, module in _models(model):
        try:
            found = module.get_input_embeddings()
        except (NotImplementedError, AttributeError):  # what a part without embeddings does
            continue
        if isinstance(found, nn.Embedding):
            yield found


def _outputs(model: Any, rows: int) -> Iterator[tuple[str, nn.Linear]]:
    """The layers that give each token's logit, with their names."""
    found = [each.get_output_embeddings() for _, each in _models(model)]
    for name, module in model.named_modules():
        if any(module is each for each in found) and isinstance(module, nn.Linear) and module.out_features == rows:
            yield name, module


def _biases(model: Any, rows: int) -> Iterator[Tensor]:
    """Whatever is added to all tokens' logits: biases of the output layers or beside them, and BART's."""
    names = {"final_logits_bias"}
    for name, _ in _outputs(model, rows):
        parent = name.rpartition(".")[0]
        names |= {f"{name}.bias", f"{parent}.bias" if parent else "bias"}
    for name, tensor in (*model.named_parameters(remove_duplicate=False), *model.named_buffers()):
        if (name in names or name.endswith(".final_logits_bias")) and tensor.shape[-1] == rows:
            yield tensor


def _models(model: Any) -> Iterator[tuple[str, Any]]:
    for name, module in model.named_modules():
        if isinstance(module, transformers.PreTrainedModel):
            yield name, module


def _unique(tensors: Any) -> list[Any]:
    return list({id(each): each for each in tensors}.values())


def _with_mapped_ids(content: dict[str, Any], new: NDArray[np.int64]) -> dict[str, Any]:
    """A configuration with its token ids, also those of the configurations inside it, mapped; and without texts."""
    mapped: dict[str, Any] = {}
    for name, value in content.items():
        if name in _TEXTS:
            continue
        if isinstance(value, dict):
            mapped[name] = _with_mapped_ids(value, new)
        elif name == "sequence_bias" and value:
            mapped[name] = [[_mapped(ids, new), bias] for ids, bias in value]
        elif name.endswith(("token_id", "token_ids")) or name in _ID_LISTS:
            mapped[name] = _mapped(value, new)
        else:
            mapped[name] = value
    if _goes_by_highest_id(content):
        mapped["eos_token_id"] = content["eos_token_id"]
    return mapped


def _goes_by_highest_id(config: dict[str, Any]) -> bool:
    """Whether it is an old CLIP's: 2 for its end of text is no id, but a mark that the highest id of a text is it."""
    return config.get("model_type") in ("clip", "clip_text_model") and config.get("eos_token_id") == 2


def _mapped(ids: Any, new: NDArray[np.int64]) -> Any:
    if isinstance(ids, list):
        return [_mapped(each, new) for each in ids]
    return int(new[ids]) if type(ids) is int and 0 <= ids < len(new) else ids
