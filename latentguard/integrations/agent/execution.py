"""Carrying out a task with the tool that was chosen for it."""

from __future__ import annotations

import secrets
import shlex
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from latentguard.errors import ToolError
from latentguard.integrations.agent.given import GivenFile, Kind
from latentguard.integrations.agent.plain import PlainTools
from latentguard.integrations.agent.registry import Entry
from latentguard.integrations.tools.base import BlockedError, Tools
from privacy.errors import DataError
from privacy.files import atomic_path
from privacy.keys import PublicKey


@dataclass(frozen=True)
class Value:
    """What a task takes or gives: a text, or the content of a file. Shows nothing of it when printed."""

    kind: Kind
    text: str = field(default="", repr=False)
    content: bytes = field(default=b"", repr=False)


@dataclass(frozen=True)
class Outcome:
    """What a tool gave: a value for later tasks, and what the user is told. `saw` is what the tool saw."""

    value: Value
    result: str
    saw: tuple[str, ...]
    path: Path | None = None
    hint: str | None = None


@dataclass(frozen=True)
class Executor:
    """What tools are called with: keys of the user, and the folder that results go to."""

    tools: Tools
    output: Path
    public_keys: Sequence[PublicKey]
    evaluation_keys: GivenFile | None
    plain: PlainTools | None
    steps: int | None

    async def carry_out(self, entry: Entry, value: Value) -> Outcome:
        """What the tool gives for a value of the kind that it takes.

        Raises:
            BlockedError: the guard blocked the prompt, and nothing was done.
            ToolError: the tool failed, or its result can't be written.
        """
        work: dict[str, Callable[[Entry, Value], Awaitable[Outcome]]] = {
            "latent-guard": self._screen,
            "text-to-encimage": self._draw_sealed,
            "text-to-image": self._draw_plain,
            "encryption-image-classification": self._classify_encrypted,
            "image-classification": self._classify_plain,
        }
        return await work[entry.name](entry, value)

    async def _screen(self, entry: Entry, value: Value) -> Outcome:
        verdict = await self.tools.screen(value.text)
        if verdict.blocked:
            raise BlockedError(verdict)
        result = f"{verdict.decision}: score {verdict.score:.2f}, threshold {verdict.threshold:.2f}"
        return Outcome(value, result, entry.sees)

    async def _draw_sealed(self, entry: Entry, value: Value) -> Outcome:
        image = await self.tools.generate(value.text, self.public_keys, steps=self.steps)
        path = self._written(image.content, "image", ".png.sealed")
        done = [f"{path}, {len(image.content):,} bytes sealed to {_keys(len(self.public_keys))}"]
        if image.personal_data is not None:
            removed = ", ".join(f"{kind} {count}" for kind, count in sorted(image.personal_data.items()))
            done.append(f"personal data taken out of the prompt: {removed or 'none'}")
        if image.attributes is not None:
            done.append(f"sensitive attributes: {image.attributes}")
        hint = f"python -m privacy open {shlex.quote(str(path))} --key YOUR_KEY --output image.png"
        return Outcome(Value(Kind.SEALED_IMAGE, content=image.content), "; ".join(done), entry.sees, path, hint)

    async def _draw_plain(self, entry: Entry, value: Value) -> Outcome:
        if self.plain is None:
            raise ToolError("not_allowed", "tools that see everything are not allowed")
        verdict = await self.tools.screen(value.text)
        if verdict.blocked:
            raise BlockedError(verdict)
        picture = await self.plain.draw(value.text, steps=self.steps)
        path = self._written(picture, "image", ".png")
        result = f"{path}, {len(picture):,} bytes, NOT encrypted"
        return Outcome(Value(Kind.PICTURE, content=picture), result, entry.sees, path)

    async def _classify_encrypted(self, entry: Entry, value: Value) -> Outcome:
        keys = None if self.evaluation_keys is None else self.evaluation_keys.content
        saw = entry.sees if keys is not None else entry.sees[:1]
        answer = await self.tools.classify(value.content, keys)
        path = self._written(answer, "label", ".answer")
        hint = f"python -m privacy.encrypted_inference decrypt {shlex.quote(str(path))} --secret YOUR_SECRET"
        result = f"{path}, an encrypted label"
        return Outcome(Value(Kind.ENCRYPTED_LABEL, content=answer), result, saw, path, hint)

    async def _classify_plain(self, entry: Entry, value: Value) -> Outcome:
        if self.plain is None:
            raise ToolError("not_allowed", "tools that see everything are not allowed")
        label = await self.plain.label(value.content)
        return Outcome(Value(Kind.LABEL, text=label), f"the label is {label}", entry.sees)

    def _written(self, content: bytes, stem: str, suffix: str) -> Path:
        path = self.output / f"{stem}-{secrets.token_hex(4)}{suffix}"
        try:
            with atomic_path(path, replace=False) as temporary:
                temporary.write_bytes(content)
        except (DataError, OSError) as error:
            raise ToolError("not_written", f"{path}: can't be written") from error
        return path


def _keys(count: int) -> str:
    return "the public key" if count == 1 else f"{count} public keys"
