"""The key holder's side: a converted encoder that reads plain text, and the blind folder made of a guard's weights."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from latentguard.encoders import load_encoder
from latentguard.encoders.base import TextEncoder, TokenStates, Window
from latentguard.encoders.huggingface import quiet_transformers
from latentguard.errors import ConceptError, WeightsError
from latentguard.heads import Heads
from latentguard.integrations.passkey.cipher import GuardCipher, plain_folder
from latentguard.integrations.passkey.client import encrypted_concept
from latentguard.integrations.passkey.encoder import EncoderSettings, converted_encoder, encoder_name
from latentguard.integrations.passkey.folder import ENCODER, write_blind_folder
from latentguard.integrations.passkey.folding import folded, readouts_of
from latentguard.integrations.passkey.messages import Limits
from latentguard.mapping import MappingLayer
from latentguard.weights import Weights, find_weights, load_weights
from privacy.passkey import PassKey, check_folder, convert
from privacy.passkey.convert import new_folder


class PasskeyEncoder:
    """A converted encoder for whoever has the key: it takes plain text, encrypts it, and runs the converted model.

    ::

        encoder = PasskeyEncoder(load_encoder("minilm-l6"), "converted", PassKey.from_file("passkey.txt"))

    With it everything that takes an encoder works over a converted one as over a plain one: training, the cache of
    token states, calibration, evaluation, and :class:`latentguard.LatentGuard` itself, explanations included.
    """

    def __init__(
        self,
        plain: TextEncoder,
        converted: str | Path,
        passkey: PassKey,
        *,
        precision: str | None = None,
    ) -> None:
        """plain: the encoder that was converted, whose layers and device are taken over; its tokenizer is used, its
        model is not.

        Raises:
            EncoderError: the plain encoder is none that can be converted, or the converted one can't be loaded.
            privacy.errors.PasskeyError: wrong passkey, another model's tokenizer, or no whole conversion.
        """
        self._settings = EncoderSettings.of(plain)
        self._cipher = GuardCipher(plain.name, passkey, converted)
        self._encoder = converted_encoder(
            converted, self._settings, device=plain.device, precision=precision, layers=plain.layers
        )
        self.name, self.depth, self.layers = self._encoder.name, self._encoder.depth, self._encoder.layers
        self.width, self.window, self.pooling = self._encoder.width, self._encoder.window, self._encoder.pooling
        self.device = self._encoder.device
        self.precision = getattr(self._encoder, "precision", "fp32")

    def windows(self, text: str) -> list[Window]:
        return self._settings.windows(*self._cipher.ids(text))

    def encode_windows(self, windows: Sequence[Window]) -> TokenStates:
        return self._encoder.encode_windows(windows)

    def encode(self, texts: Sequence[str]) -> TokenStates:
        return self.encode_windows([self.windows(text)[0] for text in texts])


def blind(
    weights: str | Path | None,
    target: str | Path,
    passkey: PassKey,
    *,
    transform: Literal["none", "orthogonal", "glide"] = "none",
    converted: str | Path | None = None,
    original: str | None = None,
    words: bool = True,
) -> Path:
    """Writes the guard of ``weights`` as a blind folder, which a server without the key screens encrypted prompts with.

    Args:
        weights: as for :meth:`latentguard.LatentGuard.from_pretrained`.
        target: the new folder; it is there whole or not at all.
        transform: how the weights' encoder is converted. Under "none", a permutation alone, the blind guard's scores
            are those of the plain one; under "orthogonal" too for CLIP and T5, and near them for BERT and the like;
            under "glide" near them.
        converted: an encoder that was converted before, instead.
        original: the plain encoder's name, which weights trained over a converted one don't tell.
        words: whether messages hold hashes of words, so that names spelled out count as they do in plain text.

    Raises:
        WeightsError: the weights can't be loaded, or belong to another encoder; or ``target`` is there already.
        EncoderError: the encoder can't be loaded or is none that can be converted.
        privacy.errors.PrivacyError: wrong passkey, no whole conversion, or ``target`` can't be written.
    """
    if Path(target).exists():
        raise WeightsError(f"{target}: exists already; it is not overwritten")
    loaded = load_weights(find_weights(weights))
    plain = load_encoder(
        _plain_name(loaded, original),
        device="cpu",
        pad_to_window=loaded.config.pad_to_window,
        layers=loaded.config.layers,
    )
    with quiet_transformers(progress=sys.stderr.isatty()), new_folder(Path(target)) as folder:
        if converted is None:
            convert(plain_folder(plain.name), folder / ENCODER, passkey, transform=transform)
        else:
            check_folder(converted)
            shutil.copytree(converted, folder / ENCODER)
        _fill(folder, loaded, plain, passkey, words)
    return Path(target)


def _plain_name(weights: Weights, original: str | None) -> str:
    if not weights.config.encoder.startswith("passkey:"):
        if original not in (None, weights.config.encoder):
            raise WeightsError(f"the weights belong to the encoder {weights.config.encoder}, not to {original}")
        return weights.config.encoder
    if original is None:
        raise WeightsError("the weights were trained over a converted encoder: tell which one it was before")
    return original


def _fill(folder: Path, weights: Weights, plain: TextEncoder, passkey: PassKey, words: bool) -> None:
    settings, cipher = EncoderSettings.of(plain), GuardCipher(plain.name, passkey, folder / ENCODER)
    mapping, heads = _for_converted(weights, plain, folder / ENCODER, passkey)
    # Without heads there is no lexical evidence that hashes could serve.
    words = words and heads is not None
    limits = Limits(cipher.vocabulary, cipher.rows, cipher.barred, settings.content, words)
    rarity = heads.rarity if heads is not None and words else None
    concepts = [encrypted_concept(cipher, concept, limits.longest_name, rarity) for concept in weights.concepts]
    if not concepts:
        raise ConceptError("the weights' bank is empty: nothing would be blocked")
    config = replace(weights.config, encoder=encoder_name(folder / ENCODER))
    if config.prompt_head is not None:
        hashed = tuple(cipher.category(name) for name in config.prompt_head.categories)
        config = replace(config, prompt_head=replace(config.prompt_head, categories=hashed))
    # In their own order the concepts of a bank that somebody knows would name themselves.
    in_order = sorted(concepts, key=lambda concept: concept.label)
    write_blind_folder(folder, mapping, heads, config, in_order, settings, limits)


def _for_converted(
    weights: Weights, plain: TextEncoder, folder: Path, passkey: PassKey
) -> tuple[MappingLayer, Heads | None]:
    """The layers as they take the converted encoder's states."""
    if weights.config.encoder == encoder_name(folder):
        return weights.mapping, weights.heads
    if weights.config.encoder != plain.name:
        raise WeightsError(f"the weights belong to the encoder {weights.config.encoder}, not to this conversion")
    record = check_folder(folder)
    if not record.transform.changes_rows:
        return weights.mapping, weights.heads
    if not record.transform.carried:
        raise WeightsError(
            "the conversion changes the encoder's states, which the weights don't know: train them over it first"
        )
    if not record.transform.maps_states:
        return weights.mapping, weights.heads  # near enough to the plain states: see `blind-evaluate`
    of_layers = readouts_of(plain_folder(plain.name), record, passkey, plain.layers)
    return folded(weights.mapping, weights.heads, of_layers)
