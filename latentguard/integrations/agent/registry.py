"""The tools that tasks are carried out with: what each needs to see, how private and how good it is; and the choice."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import IntEnum

from latentguard.integrations.agent.given import Kind
from latentguard.integrations.agent.plan import TaskKind
from latentguard.integrations.tools.base import ToolName


class Privacy(IntEnum):
    """How private a tool is; more is better for the user."""

    PLAIN = 0
    SEALED = 1
    BLIND = 2


_LEARNS = {
    Privacy.PLAIN: "it sees all of it",
    Privacy.SEALED: "what it makes is for its owner alone",
    Privacy.BLIND: "it works on ciphertexts",
}


@dataclass(frozen=True)
class Entry:
    """A tool of the registry.

    Attributes:
        name: as PrivacyAsst has it, where it does.
        task: the task that it carries out.
        sees: what it has to see, in words for the user.
        takes, gives: the kinds of its input and of what comes out.
        privacy: how private it is.
        quality: from 0 to 1, among the tools of a task, and what that rests on.
        calls: the tool of `Tools` behind it; None for one that works in plain, in this process.
        needs_key: whether it works only for a user with a public key.
    """

    name: str
    task: TaskKind
    sees: tuple[str, ...]
    takes: Kind
    gives: Kind
    privacy: Privacy
    quality: float
    quality_note: str
    calls: ToolName | None
    needs_key: bool = False


REGISTRY: tuple[Entry, ...] = (
    Entry(
        "latent-guard",
        "prompt-screening",
        ("the prompt",),
        Kind.TEXT,
        Kind.TEXT,
        Privacy.PLAIN,
        1.0,
        "the only one",
        "screen_prompt",
    ),
    Entry(
        "text-to-encimage",
        "text-to-image",
        ("the prompt", "the public key"),
        Kind.TEXT,
        Kind.SEALED_IMAGE,
        Privacy.SEALED,
        0.9,
        "persons get random attributes",
        "generate_private_image",
        needs_key=True,
    ),
    Entry(
        "text-to-image",
        "text-to-image",
        ("the prompt", "the plain picture"),
        Kind.TEXT,
        Kind.PICTURE,
        Privacy.PLAIN,
        1.0,
        "the prompt is drawn as it is",
        None,
    ),
    Entry(
        "encryption-image-classification",
        "image-classification",
        ("the encrypted image", "the evaluation keys"),
        Kind.ENCRYPTED_IMAGE,
        Kind.ENCRYPTED_LABEL,
        Privacy.BLIND,
        0.98,
        "the accuracy of the shipped mnist network",
        "classify_encrypted_image",
    ),
    Entry(
        "image-classification",
        "image-classification",
        ("the plain picture", "its label"),
        Kind.PICTURE,
        Kind.LABEL,
        Privacy.PLAIN,
        0.98,
        "the accuracy of the shipped mnist network",
        None,
    ),
)


@dataclass(frozen=True)
class Situation:
    """What counts for a choice: the kind of the input, whether there is a key, what is offered and allowed."""

    given: Kind
    has_public_key: bool
    offered: Collection[ToolName]
    plain_allowed: bool
    plain_offered: Collection[str]


@dataclass(frozen=True)
class Choice:
    """The tool that was chosen, or None; and why, a line for each tool of the task."""

    entry: Entry | None
    reasons: tuple[str, ...]


def choose(task: TaskKind, situation: Situation) -> Choice:
    """The most private tool for a task that can be used; among equally private ones, the better."""
    candidates = sorted(
        (entry for entry in REGISTRY if entry.task == task), key=lambda entry: (-entry.privacy, -entry.quality)
    )
    chosen: Entry | None = None
    reasons = []
    for entry in candidates:
        obstacle = _obstacle(entry, situation)
        if obstacle is None and chosen is None:
            chosen = entry
            reasons.append(
                f"{entry.name}: chosen as the most private that can be used ({_LEARNS[entry.privacy]}); "
                f"quality {entry.quality:.2f}: {entry.quality_note}"
            )
        elif obstacle is None:
            reasons.append(f"{entry.name}: not needed, it sees {' and '.join(entry.sees)}")
        else:
            reasons.append(f"{entry.name}: not possible, {obstacle}")
    return Choice(chosen, tuple(reasons))


def _obstacle(entry: Entry, situation: Situation) -> str | None:
    """Why a tool can't be used, and what helps; None if it can."""
    if entry.takes is not situation.given:
        return f"it takes {_a(entry.takes)}, and there is {_a(situation.given)}"
    if entry.needs_key and not situation.has_public_key:
        return "it needs a public key: `python -m privacy keygen` makes one, --public-key gives it"
    if entry.calls is not None and entry.calls not in situation.offered:
        return "it is not offered here"
    if entry.calls is None and not situation.plain_allowed:
        return f"it would see {' and '.join(entry.sees)}, which only --allow-plain allows"
    if entry.calls is None and entry.name not in situation.plain_offered:
        return "it is not offered here"
    return None


def _a(kind: Kind) -> str:
    name: str = kind.value
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"
