"""Images that nobody but their owner sees, from prompts that say nothing of their owner.

    private = PrivateImagePipeline(pipe, guard, seal_to=public_key)
    image = private("a nurse called Anna Schmidt reading a letter", num_inference_steps=20)[0]
    open_sealed(image.sealed, private_key).data  # the PNG, for whoever has the private key

A call screens what the user wrote, takes personal data out of it, gives the persons in it random attributes, screens
the result, draws it, and seals each picture as PNG in memory. Nothing unsealed is written to disk, and what the
pipeline logs meanwhile is withheld. docs/private-images.md says what that does not cover.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from io import BytesIO
from typing import Any, Literal, NamedTuple, Protocol, get_args

from PIL.Image import Image

from privacy.attributes import AttributeSchema, Outcome, Profile, Shuffled
from privacy.errors import PipelineError, PromptRefusedError
from privacy.keys import PublicKey, SigningKey
from privacy.pii import Replace, Scrubbed, Scrubber, Tokens
from privacy.pii.actions import PROMPT_WORDS, TokenStore
from privacy.sealing import Metadata, seal
from privacy.withheld_logs import withheld_logs

OnBlock = Literal["raise", "skip"]
Recipients = PublicKey | Sequence[PublicKey]

# What would bring something out of the pipeline that isn't sealed, or something in that isn't scrubbed.
_OURS = {
    "output_type": "pictures leave this pipeline as sealed PNGs only",
    "return_dict": "a private call always gives a list",
    "output": "a private call always gives a list",
    "state": "a state may hold texts; give the prompt",
}
_PICTURES = ("image", "mask_image", "control_image")
_NAMES_OF_TENSORS = "callback_on_step_end_tensor_inputs"


class Verdict(Protocol):
    """What a guard says of one prompt."""

    @property
    def blocked(self) -> bool:
        """Whether it must not be drawn."""
        ...


class Guard(Protocol):
    """What screens prompts, such as `latentguard.LatentGuard`. If it can't, it raises, and nothing is drawn."""

    def check_batch(self, prompts: Sequence[str], /) -> Iterable[Verdict]:
        """A verdict for each of the prompts, in order."""
        ...


class Verdicts(NamedTuple):
    """On what the user `wrote`, on what was to be `drawn` instead, and what a guard on the pipeline itself said.

    None where nothing was screened: there is no guard, or the prompt is empty or was refused before.
    """

    written: Verdict | None = None
    drawn: Verdict | None = None
    pipeline: Verdict | None = None

    @property
    def blocked(self) -> bool:
        """Whether one of them blocks."""
        return any(verdict is not None and verdict.blocked for verdict in self)


@dataclass(frozen=True)
class PrivateImage:
    """One image. When printed it shows nothing of prompt, profile or verdicts, which hold prompts.

    Attributes:
        sealed: the PNG, sealed to its recipients; None if the prompt was refused.
        prompt: what was drawn, whose keyed hash is sealed with the image; None if it was refused.
        profile: the attributes that stand in the prompt; None if it was left alone.
        outcome: what shuffling did, as in `privacy.attributes.Shuffled`; None if the prompt was refused before.
        pii: how much personal data was taken out of prompt and negative prompt, by type.
        tokens: what the user wrote with tokens for personal data, for `privacy.pii.restore`; None without a vault.
        verdicts: those of the guard.
        blanked: whether a check of the pipeline's own made the picture black.
    """

    sealed: bytes | None = field(repr=False)
    prompt: str | None = field(repr=False)
    profile: Profile | None = field(repr=False)
    outcome: Outcome | None
    pii: Mapping[str, int]
    tokens: str | None = field(repr=False)
    verdicts: Verdicts = field(repr=False)
    blanked: bool = False

    @property
    def blocked(self) -> bool:
        """Whether the prompt was refused."""
        return self.verdicts.blocked


class PrivateImagePipeline:
    """A text-to-image pipeline of diffusers whose prompts are made private and whose images are sealed.

    Args:
        pipe: any pipeline that takes `prompt` and gives PIL images, modular ones included.
        guard: screens what users write and what is made of it. A pipeline that is guarded already sees the latter only,
            so its guard has to be given here as well.
        attributes: the attributes that are shuffled; by default the six of PrivacyAsst.
        seal_to: whom images are sealed to, unless a call says otherwise; all recipients can open all images of a call.
        signing_key: signs the sealed images, so that their owner knows who made them.
        model: the model's name, for everybody to read in a sealed image.
        on_block: "raise" `PromptRefusedError` if any prompt of a call is blocked, or "skip" it and draw the others.
        replace_stated: replace the attributes that a user states, too.
        draw: draws the profiles, such as `privacy.population.Population.draw`; by default the schema does.
        scrubber: takes personal data out; by default names become "a person" and "a place", the rest its <TYPE>.
        vault: keeps the personal data that was taken out, for `privacy.pii.restore`.
        keep_tokens: for how long the vault keeps it; by default until it is deleted.

    Raises:
        DataError, KeyFileError: nothing can be sealed to these recipients or under this name.
        PipelineError: an option can't be used.
        MissingDependencyError: Presidio is not installed.
    """

    def __init__(
        self,
        pipe: Callable[..., Any],
        guard: Guard | None = None,
        attributes: AttributeSchema | None = None,
        *,
        seal_to: Recipients,
        signing_key: SigningKey | None = None,
        model: str = "",
        on_block: OnBlock = "raise",
        replace_stated: bool = False,
        draw: Callable[[random.Random | None], Profile] | None = None,
        scrubber: Scrubber | None = None,
        vault: TokenStore | None = None,
        keep_tokens: timedelta | None = None,
    ) -> None:
        if guard is not None and not callable(getattr(guard, "check_batch", None)):
            raise PipelineError(f"guard: a {type(guard).__name__} has no check_batch")
        if on_block not in get_args(OnBlock):
            raise PipelineError(f"on_block: no {on_block!r}; give one of {', '.join(get_args(OnBlock))}")
        if keep_tokens is not None and vault is None:
            raise PipelineError("keep_tokens: there is no vault to keep them")
        self._pipe, self._guard, self._on_block = pipe, guard, on_block
        self._schema = attributes or AttributeSchema.default()
        self._replace_stated, self._draw = replace_stated, draw
        self._scrubber = scrubber or Scrubber(Replace(PROMPT_WORDS))
        self._vault, self._keep_tokens = vault, keep_tokens
        self._model, self._signing_key = model, signing_key
        self._recipients = self._usable(seal_to)

    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        negative_prompt: str | Sequence[str] | None = None,
        num_images_per_prompt: int = 1,
        seal_to: Recipients | None = None,
        **arguments: Any,
    ) -> list[PrivateImage]:
        """Draws the prompts; `arguments` go to the pipeline.

        Every image has a profile of its own, those of one prompt (`num_images_per_prompt`) too. A skipped prompt leaves
        its place in the list. The noise is drawn for skipped prompts as well, so that one more or less changes no other
        image.

        Raises:
            PromptRefusedError: a prompt is blocked, and `on_block` is "raise". Nothing was drawn.
            PipelineError: an argument can't be made private, the guard doesn't answer as it should, or the pipeline
                gives something else than an image for each prompt.
            PiiError, SchemaError, DataError, KeyFileError, VaultError: from the steps before and after the drawing.
            What the pipeline and the guard raise passes through.
        """
        recipients = self._recipients if seal_to is None else self._usable(seal_to)
        texts = _texts("prompt", prompt)
        _check_arguments(arguments, num_images_per_prompt)
        written = self._screened(texts)
        self._refuse([Verdicts(verdict) for verdict in written])
        negative = None if negative_prompt is None else _per_prompt("negative_prompt", negative_prompt, len(texts))
        requests = [
            self._prepared(text, verdict, None if negative is None else negative[place])
            for place, (text, verdict) in enumerate(zip(texts, written, strict=True))
        ]
        rows = [self._shuffled(request) for request in requests for _ in range(num_images_per_prompt)]
        drawn = self._screened([row.prompt for row in rows])
        rows = [row._replace(verdicts=row.verdicts._replace(drawn=v)) for row, v in zip(rows, drawn, strict=True)]
        self._refuse([_worst(rows, request) for request in requests])
        if all(row.verdicts.blocked for row in rows):
            return [_refused(row) for row in rows]
        pictures = self._pictures(rows, arguments, negative is not None)
        tokens = {id(request): self._tokens(request) for request in requests}
        return [
            _refused(row) if row.verdicts.blocked else self._sealed(row, picture, tokens[id(row.request)], recipients)
            for row, picture in zip(rows, pictures, strict=True)
        ]

    # --- before the drawing

    def _usable(self, recipients: Recipients) -> Recipients:
        """The recipients, after sealing nothing to them: what is wrong with them shows before the drawing."""
        recipients = recipients if isinstance(recipients, PublicKey) else tuple(recipients)
        seal(b"", recipients, Metadata(self._model), signing_key=self._signing_key)
        return recipients

    def _screened(self, texts: Sequence[str]) -> list[Verdict | None]:
        """The verdict on each text; None for an empty one, and for all without a guard."""
        asked = list(dict.fromkeys(text for text in texts if text.strip()))
        if self._guard is None or not asked:
            return [None] * len(texts)
        found = list(self._guard.check_batch(asked))
        if len(found) != len(asked):
            raise PipelineError(f"the guard gave {len(found)} verdicts on {len(asked)} prompts")
        for verdict in found:
            # Not by truth: None, or a forgotten call, must not pass for "not blocked".
            if not isinstance(getattr(verdict, "blocked", None), bool):
                raise PipelineError("the guard gave a verdict that doesn't say whether it blocks")
        by_text = dict(zip(asked, found, strict=True))
        return [by_text.get(text) for text in texts]

    def _refuse(self, verdicts: Sequence[Verdicts]) -> None:
        if self._on_block == "raise" and any(each.blocked for each in verdicts):
            raise PromptRefusedError(verdicts)

    def _prepared(self, text: str, verdict: Verdict | None, negative: str | None) -> _Request:
        if Verdicts(verdict).blocked:
            return _Request(text, Scrubbed("", ()), Scrubbed("", ()), verdict)
        return _Request(text, self._scrubber.scrub(text), self._scrubber.scrub(negative or ""), verdict)

    def _shuffled(self, request: _Request) -> _Row:
        verdicts = Verdicts(request.verdict)
        if verdicts.blocked:
            return _Row(request, None, verdicts)
        prompt = request.scrubbed.text
        return _Row(
            request, self._schema.shuffle(prompt, replace_stated=self._replace_stated, draw=self._draw), verdicts
        )

    # --- the drawing

    def _pictures(self, rows: Sequence[_Row], arguments: Mapping[str, Any], negative: bool) -> list[_Picture]:
        given = dict(arguments)
        # An empty prompt in the place of a blocked one.
        given["prompt"] = ["" if row.verdicts.blocked else row.prompt for row in rows]
        if negative:
            given["negative_prompt"] = [row.request.negative.text for row in rows]
        with withheld_logs():
            output = self._pipe(**given)
        images, own = getattr(output, "images", None), getattr(output, "verdicts", None)
        if own is not None and self._guard is None:
            raise PipelineError(
                "the pipeline has a guard, which sees what was made of the prompts and not what users wrote: "
                "give that guard to PrivateImagePipeline as well"
            )
        if not isinstance(images, list) or not all(isinstance(image, Image) for image in images):
            raise PipelineError("the pipeline didn't give a list of PIL images")
        verdicts = [None] * len(rows) if own is None else list(own)
        blanked = list(getattr(output, "blanked", None) or [False] * len(rows))
        if {len(images), len(verdicts), len(blanked)} != {len(rows)}:
            raise PipelineError(f"the pipeline didn't give an image for each of {len(rows)} prompts")
        return [_Picture(*each) for each in zip(images, verdicts, blanked, strict=True)]

    # --- after the drawing

    def _tokens(self, request: _Request) -> str | None:
        """What the user wrote with tokens for what was found in it; the vault has the values from here on."""
        if self._vault is None:
            return None
        expires = None if self._keep_tokens is None else datetime.now(timezone.utc) + self._keep_tokens
        action = Tokens(self._vault, expires)
        text, done = "", 0
        for found in request.scrubbed.findings:
            value = request.written[found.start : found.end]
            text += request.written[done : found.start] + action(found.type, value)
            done = found.end
        return text + request.written[done:]

    def _sealed(self, row: _Row, picture: _Picture, tokens: str | None, recipients: Recipients) -> PrivateImage:
        verdicts = row.verdicts._replace(pipeline=picture.verdict)
        # A guard on the pipeline that blocks what this one let pass has drawn something else, or nothing.
        prompt = None if verdicts.blocked else row.prompt
        metadata = Metadata(self._model, prompt)
        content = seal(_png(picture.image), recipients, metadata, signing_key=self._signing_key)
        profile, outcome = _shuffling(row)
        return PrivateImage(content, prompt, profile, outcome, _pii(row), tokens, verdicts, picture.blanked)


class _Request(NamedTuple):
    """A prompt as it was written, and without personal data."""

    written: str
    scrubbed: Scrubbed
    negative: Scrubbed
    verdict: Verdict | None


class _Row(NamedTuple):
    """What one image is made of; nothing is shuffled of a request that was refused before."""

    request: _Request
    shuffled: Shuffled | None
    verdicts: Verdicts

    @property
    def prompt(self) -> str:
        return "" if self.shuffled is None else self.shuffled.prompt


class _Picture(NamedTuple):
    image: Image
    verdict: Verdict | None
    blanked: bool


def _worst(rows: Sequence[_Row], request: _Request) -> Verdicts:
    """Of the rows of a request, the verdicts on one that is blocked, if any is."""
    return max((row.verdicts for row in rows if row.request is request), key=lambda verdicts: verdicts.blocked)


def _refused(row: _Row) -> PrivateImage:
    return PrivateImage(None, None, None, None, _pii(row), None, row.verdicts)


def _shuffling(row: _Row) -> tuple[Profile | None, Outcome | None]:
    return (None, None) if row.shuffled is None else (row.shuffled.profile, row.shuffled.outcome)


def _pii(row: _Row) -> dict[str, int]:
    findings = (*row.request.scrubbed.findings, *row.request.negative.findings)
    return dict(Counter(found.type for found in findings))


def _png(image: Image) -> bytes:
    content = BytesIO()
    image.save(content, "PNG")
    return content.getvalue()


# --- what a call is given


def _texts(name: str, given: str | Sequence[str]) -> list[str]:
    texts = [given] if isinstance(given, str) else list(given)
    if not texts or not all(isinstance(text, str) for text in texts):
        raise PipelineError(f"{name}: expected text or a list of texts")
    return texts


def _per_prompt(name: str, given: str | Sequence[str], prompts: int) -> list[str]:
    texts = [given] * prompts if isinstance(given, str) else _texts(name, given)
    if len(texts) != prompts:
        raise PipelineError(f"{name}: {len(texts)} of them for {prompts} prompts")
    return texts


def _check_arguments(arguments: Mapping[str, Any], images_per_prompt: int) -> None:
    """PipelineError, naming the argument, for one that would get past the scrubbing or around the sealing."""
    if not isinstance(images_per_prompt, int) or images_per_prompt < 1:
        raise PipelineError("num_images_per_prompt: expected a number from 1 on")
    for name, value in arguments.items():
        if name in _OURS:
            raise PipelineError(f"{name}: {_OURS[name]}")
        if images_per_prompt > 1 and name in _PICTURES and isinstance(value, (list, tuple)):
            raise PipelineError(f"{name}: lists don't go with num_images_per_prompt; repeat the prompts instead")
        for place, part in _parts(name, value):
            if place.endswith(("_embeds", "_embeds_mask")) and part is not None:
                raise PipelineError(f"{place}: personal data can't be taken out of embeddings; give the prompt")
            if isinstance(part, (str, bytes)) and name != _NAMES_OF_TENSORS:
                raise PipelineError(
                    f"{place}: text goes only into prompt and negative_prompt, to be made private there"
                )


def _parts(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """A value by its name and, if it holds others, those too."""
    yield name, value
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from _parts(str(key), part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _parts(name, part)
