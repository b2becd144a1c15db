"""The client: it makes the keys, encrypts images and decrypts labels. The secret key never leaves it."""

from __future__ import annotations

import math
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import numpy.typing as npt

from privacy.encrypted_inference.packing import Packing
from privacy.encrypted_inference.parameters import DEFAULT
from privacy.encrypted_inference.seal import from_bytes, levels, rotation_keys, seal_context, sealapi, to_bytes
from privacy.encrypted_inference.weights import Architecture, Floats
from privacy.encrypted_inference.wire import (
    BATCHED,
    MAX_PACKED,
    PACKED,
    Answer,
    Keys,
    Query,
    decode,
    encode,
    fingerprint,
    shape_fingerprint,
)
from privacy.errors import CiphertextError, DecryptionError, ImageSizeError, KeyFileError, KeyMismatchError, ModelError
from privacy.files import read_secret, write_secret

# An answer's slots repeat the logits to within this; under a wrong key they are off by thousands.
_MOST_ERROR = 1.0
_MOST_LOGIT = 1024.0
# Largest error of a logit that the measurement in docs/encrypted-inference.md found, rounded up; floods hide it.
LOGIT_ERROR = 0.1
_KEY_FILE_BYTES = 1 << 21
_KEY_FILE = "latentguard-encrypted-inference-secret-1"


@dataclass(frozen=True, eq=False)
class Predictions:
    """``labels`` [B] and the ``logits`` [B, classes] that they are the largest of."""

    labels: tuple[str, ...]
    logits: Floats


class Client:
    """One client's secret key, for one model.

    >>> client, keys_message = Client.generate(load_architecture("mnist"), "mnist")
    >>> query_message = client.encrypt(images)  # [B, 28, 28], from 0 to 1
    >>> client.decrypt(answer_message).labels
    """

    def __init__(self, architecture: Architecture, model: str, key_fingerprint: bytes, secret_key: Any) -> None:
        context = seal_context(DEFAULT)
        self.architecture = architecture
        self.model = model
        self.fingerprint = key_fingerprint
        self._secret_key = secret_key
        self._packing = Packing(architecture, DEFAULT.slots)
        self._encoder = sealapi.CKKSEncoder(context)
        self._encryptor = sealapi.Encryptor(context, secret_key)
        self._decryptor = sealapi.Decryptor(context, secret_key)

    @classmethod
    def generate(cls, architecture: Architecture, model: str) -> tuple[Client, bytes]:
        """A client with a new secret key, and the message that brings its evaluation keys to a server."""
        generator = sealapi.KeyGenerator(seal_context(DEFAULT))
        relin = sealapi.RelinKeys()
        generator.create_relin_keys(relin)
        rotations = rotation_keys(generator, DEFAULT, Packing(architecture, DEFAULT.slots).keys)
        message = encode(Keys(DEFAULT, to_bytes(relin), to_bytes(rotations)))
        return cls(architecture, model, fingerprint(message), generator.secret_key()), message

    def save(self, path: str | Path) -> None:
        """Writes the secret key to a new file that only its owner may read.

        Raises:
            DataError: the file is there already, or can't be written.
        """
        content = {
            "kind": _KEY_FILE,
            "architecture": self.architecture.as_dict(),
            "model": self.model,
            "fingerprint": self.fingerprint,
            "secret_key": to_bytes(self._secret_key),
        }
        write_secret(path, msgpack.packb(content))

    @classmethod
    def load(cls, path: str | Path) -> Client:
        """The client that `save` wrote.

        Raises:
            KeyFileError: the file isn't one, or others may read it.
        """
        try:
            content = msgpack.unpackb(read_secret(path, _KEY_FILE_BYTES))
            if not isinstance(content, dict) or content.pop("kind", None) != _KEY_FILE:
                raise KeyFileError(f"{path}: not a secret key of encrypted inference")
            architecture = Architecture.from_dict(content["architecture"])
            secret_key = from_bytes(sealapi.SecretKey, content["secret_key"], DEFAULT, "secret key")
            return cls(architecture, str(content["model"]), bytes(content["fingerprint"]), secret_key)
        except (ValueError, KeyError, TypeError, msgpack.UnpackException, CiphertextError, ModelError) as error:
            raise KeyFileError(f"{path}: not a secret key of encrypted inference, or damaged") from error

    def encrypt(self, images: npt.ArrayLike, layout: str | None = None) -> bytes:
        """The query's message for `images` [B, side, side] of values from 0 to 1.

        Up to 64 images are ``packed`` by default, a few ciphertexts each; more are ``batched``, a ciphertext per pixel,
        which costs a server the same for one image as for 4,096.

        Raises:
            ImageSizeError: the images are of another size, too many, none, or have values out of range.
        """
        pixels = np.asarray(images, dtype=np.float64)
        side = self.architecture.side
        if pixels.ndim != 3 or pixels.shape[1:] != (side, side):
            raise ImageSizeError(f"images: of shape {pixels.shape}, where [B, {side}, {side}] is awaited")
        layout = layout or (PACKED if len(pixels) <= MAX_PACKED else BATCHED)
        most = MAX_PACKED if layout == PACKED else DEFAULT.slots
        if not 1 <= len(pixels) <= most:
            raise ImageSizeError(f"images: {len(pixels)}, where a {layout} query takes 1 to {most}")
        if not (pixels.min() >= 0 and pixels.max() <= 1):
            raise ImageSizeError("images: values outside 0 to 1")
        top, middle = levels(DEFAULT)[3], levels(DEFAULT)[1]
        if layout == PACKED:
            vectors, level, bits = np.concatenate(list(map(self._packing.encode, pixels))), top, DEFAULT.image_scale
        else:
            vectors, level, bits = pixels.reshape(len(pixels), -1).T, middle, DEFAULT.batch_scale
        ciphertexts = tuple(self._encrypted(vector, level, bits) for vector in vectors)
        shape = shape_fingerprint(self.architecture)
        return encode(Query(self.fingerprint, self.model, shape, layout, len(pixels), ciphertexts))

    def decrypt(self, message: bytes) -> Predictions:
        """The labels in an answer. Never hand the logits to the server or to others: see `decrypt_to_share`.

        Raises:
            KeyMismatchError: the answer is for another client's keys, or from another model.
            DecryptionError: what was decrypted is no answer.
            WireError, CiphertextError: the message is damaged.
            InferenceError: the server's `Failure`, as the error it stands for.
        """
        answer = decode(message, Answer)
        if answer.fingerprint != self.fingerprint:
            raise KeyMismatchError("answer: it is for the keys of another client")
        if answer.model != self.model:
            raise KeyMismatchError(f"answer: from the model {answer.model!r}, where {self.model!r} was asked")
        classes = self.architecture.classes
        awaited = answer.count if answer.layout == PACKED else classes
        if len(answer.ciphertexts) != awaited:
            raise DecryptionError(f"answer: {len(answer.ciphertexts)} ciphertexts, where {awaited} are awaited")
        slots = [self._decrypted(ciphertext) for ciphertext in answer.ciphertexts]
        if answer.layout == PACKED:
            decoded = [self._packing.decode(values) for values in slots]
            logits, away = np.stack([values for values, _ in decoded]), max(distance for _, distance in decoded)
        else:
            logits, away = np.stack(slots, axis=1)[: answer.count], 0.0
        if not (away <= _MOST_ERROR and np.abs(logits).max() <= _MOST_LOGIT):
            raise DecryptionError("answer: decrypted to noise: it was damaged, or encrypted under another key")
        return self._predictions(logits)

    def decrypt_to_share(self, message: bytes, statistical_bits: int = 20, answers: int = 1) -> Predictions:
        """As `decrypt`, with noise over the logits that hides the noise of CKKS, so that others may see the result.

        A CKKS decryption carries noise that depends on the secret key (Li and Micciancio, EUROCRYPT 2021). Gaussian
        noise of standard deviation √(12 · answers) · 2^(bits / 2) · error floods it to that many bits of statistical
        security (Li, Micciancio, Schultz and Sorrell, CRYPTO 2022, theorem 2), for `answers` shared in all.
        """
        if statistical_bits < 0 or answers < 1:
            raise DecryptionError("answer: bits have to be at least 0, and answers at least 1")
        logits = self.decrypt(message).logits
        spread = math.sqrt(12 * answers) * 2 ** (statistical_bits / 2) * LOGIT_ERROR
        random = secrets.SystemRandom()
        noise = np.array([random.gauss(0.0, spread) for _ in range(logits.size)])
        return self._predictions(logits + noise.reshape(logits.shape))

    def _predictions(self, logits: Floats) -> Predictions:
        return Predictions(tuple(self.architecture.labels[place] for place in logits.argmax(axis=1)), logits)

    def _encrypted(self, vector: Floats, level: Any, bits: int) -> bytes:
        plaintext, ciphertext = sealapi.Plaintext(), sealapi.Ciphertext()
        self._encoder.encode(vector.tolist(), level, 2.0**bits, plaintext)
        self._encryptor.encrypt_symmetric(plaintext, ciphertext)
        return to_bytes(ciphertext)

    def _decrypted(self, content: bytes) -> Floats:
        ciphertext = from_bytes(sealapi.Ciphertext, content, DEFAULT, "answer")
        plaintext = sealapi.Plaintext()
        try:
            self._decryptor.decrypt(ciphertext, plaintext)
            return np.array(self._encoder.decode_double(plaintext))
        except (RuntimeError, ValueError) as error:
            raise DecryptionError("answer: its ciphertext can't be decrypted") from error
