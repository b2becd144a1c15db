"""The exceptions of the privacy stage: one base class, one subclass per kind of mistake.

Each message is a single line that says what was wrong and where. None of them carries a secret, a prompt or personal
data, so they are safe to log.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from privacy.pipeline import Verdicts


class PrivacyError(Exception):
    """Base of every error that the privacy package raises on purpose."""


class DataError(PrivacyError):
    """A data file can't be read or written as asked; the message names the file, and the row and field if known."""


class SchemaError(PrivacyError):
    """An attribute schema can't be used, or asks for what can't be had; the message names the entry."""


class PiiError(PrivacyError):
    """Personal data can't be found or replaced as asked: an unknown type, a short key, a token that isn't one."""


class KeyFileError(PrivacyError):
    """A key can't be read, made or used: damaged, of another kind, readable by others, or its passphrase is wrong."""


class CannotOpenError(PrivacyError):
    """A sealed file can't be opened.

    Whether it was changed, cut short, sealed to somebody else, signed by somebody else, of another version or no sealed
    file at all is not said: whoever feeds files to an opener learns nothing from the answer but yes or no.
    """

    def __init__(self) -> None:
        super().__init__("can't be opened: it was changed, isn't for this key, or is no sealed file of this version")


class VaultError(PrivacyError):
    """The vault can't be reached, its master key is missing, or a record in it was tampered with."""


class RecordNotFoundError(VaultError):
    """The vault has no such record: never stored, deleted, or expired."""


class MissingDependencyError(PrivacyError):
    """An optional package or program is needed for what was asked; the message says how to install it."""


class PipelineError(PrivacyError):
    """Images can't be made privately as asked: an argument would get past it, or pipeline or guard misbehave."""


class PromptRefusedError(PrivacyError):
    """The guard blocked one or more prompts of a call, and nothing was drawn.

    ``verdicts`` holds those on each prompt, in order. The message never quotes a prompt; the verdicts may.
    """

    def __init__(self, verdicts: Sequence[Verdicts]) -> None:
        self.verdicts = tuple(verdicts)
        places = [str(place) for place, each in enumerate(self.verdicts, start=1) if each.blocked]
        super().__init__(f"refused, of {len(self.verdicts)} prompts: {', '.join(places)}")


class LegacyWarning(UserWarning):
    """What was read had been encrypted by the published PrivacyAsst flow, whose key exchange protects nothing."""


class InferenceError(PrivacyError):
    """Base of what can go wrong in encrypted inference."""


class ModelError(InferenceError):
    """A network for encrypted inference is unknown, damaged, or of a shape that can't be evaluated."""


class ParameterError(InferenceError):
    """Parameters of the encryption would be insecure, or don't fit together."""


class WireError(InferenceError):
    """A message isn't one: too long, cut short, of another version or kind, or with a field that can't be."""


class ContextError(InferenceError):
    """Keys or ciphertexts were made under other encryption parameters than the server's."""


class CiphertextError(InferenceError):
    """A ciphertext or key that came in is damaged or not of these parameters; nothing was computed with it."""


class DepthError(InferenceError):
    """A ciphertext has too few levels left: it was computed on before, as an answer was."""


class ImageSizeError(InferenceError):
    """Images aren't of the size that the model takes, or a query was packed for a model of another shape."""


class KeyMismatchError(InferenceError):
    """A message belongs to the keys of another client, or the keys lack what this model needs."""


class SessionExpiredError(InferenceError):
    """The server has no keys for this query: they were never sent, or their session is over; send them again."""


class CapacityError(InferenceError):
    """The server has as many sessions as it can hold; try later."""


class WorkerError(InferenceError):
    """The process that evaluates died or took too long; nothing but this request is lost."""


class DecryptionError(InferenceError):
    """What was decrypted doesn't look like an answer: it was damaged, or encrypted under another key."""


class PasskeyError(PrivacyError):
    """Base of what can go wrong with passkey text models."""


class WrongPasskeyError(PasskeyError):
    """The passkey isn't the one that the model was converted with, or its passkey.json was changed."""


class ConversionError(PasskeyError):
    """A model can't be converted, or a folder holds no whole conversion: cut short, changed, of another version."""


class TokenizerMismatchError(PasskeyError):
    """The tokenizer isn't the one whose vocabulary was encrypted."""


class FinetuneError(PasskeyError):
    """A model can't be fine-tuned as asked: it doesn't fit the task, or settings don't fit together."""


class AttackError(PasskeyError):
    """An attack can't be measured: a text is missing or too short, or the models don't belong together."""


class UnknownTokenError(PasskeyError):
    """A token or id isn't in the vocabulary; the message tells its place, never a text."""


class MemorizationError(PrivacyError):
    """Base of what can go wrong in the audit of what a model remembers; the message names what doesn't fit."""


class AuditedModelError(MemorizationError):
    """A model can't be loaded, fine-tuned or asked as wanted; the message names it."""


class EndpointError(MemorizationError):
    """A language model's endpoint can't be asked, or doesn't answer; the message holds no key and nothing it sent."""


class UnusableImageError(MemorizationError):
    """An image is damaged, or of a kind that can't be changed and written again; the message says why."""
