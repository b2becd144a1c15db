"""The tools over parts in this process: a guard, a pipeline of diffusers and a server of encrypted inference."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from anyio.to_thread import run_sync

from latentguard.errors import MissingDependencyError, ToolError
from latentguard.guard import LatentGuard
from latentguard.integrations.tools.base import (
    BlockedError,
    Concept,
    PolicyInForce,
    Score,
    Screening,
    SealedImage,
    ToolName,
    Word,
)
from latentguard.integrations.tools.failures import as_tool_errors
from latentguard.verdict import Verdict
from privacy.encrypted_inference.server import Server
from privacy.encrypted_inference.weights import model_folder
from privacy.errors import PipelineError, PromptRefusedError
from privacy.keys import PublicKey
from privacy.pii import Scrubber
from privacy.pii.actions import PROMPT_WORDS, Replace
from privacy.pipeline import PrivateImagePipeline

_T = TypeVar("_T")


class LocalTools:
    """Tools over what it is given; without a pipeline or a classifier, their tools are not offered.

    Work is done in threads, one screening, one drawing and one classification at a time.

    Args:
        guard: screens every prompt, as it was written and as it is drawn.
        pipeline: a text-to-image pipeline of diffusers.
        classifier: a server of encrypted inference; closed by `aclose`.
        model: the pipeline's name, for everybody to read in a sealed image.
    """

    def __init__(
        self, guard: LatentGuard, *, pipeline: Any = None, classifier: Server | None = None, model: str = ""
    ) -> None:
        self.pipeline = pipeline
        self._guard, self._classifier, self._model = guard, classifier, model
        self._scrubber = None if pipeline is None else Scrubber(Replace(PROMPT_WORDS))
        self._screening, self._drawing = threading.Lock(), threading.Lock()

    @property
    def offered(self) -> frozenset[ToolName]:
        there: dict[ToolName, bool] = {
            "screen_prompt": True,
            "generate_private_image": self.pipeline is not None,
            "classify_encrypted_image": self._classifier is not None,
        }
        return frozenset(name for name, offered in there.items() if offered)

    @property
    def place(self) -> str:
        return "this process"

    async def screen(self, prompt: str, *, nearest: int = 5, words: bool = False) -> Screening:
        return await _in_thread(lambda: self._screened(prompt, nearest, words))

    async def generate(self, prompt: str, recipients: Sequence[PublicKey], *, steps: int | None = None) -> SealedImage:
        return await _in_thread(lambda: self._drawn(prompt, recipients, steps))

    async def classify(self, query: bytes, keys: bytes | None = None) -> bytes:
        return await _in_thread(lambda: self._classified(query, keys))

    async def policy(self) -> PolicyInForce:
        guard = self._guard
        return PolicyInForce(
            fingerprint=fingerprint(guard),
            threshold=guard.policy.threshold,
            concepts=len(guard.concepts.snapshot.concepts),
        )

    async def concepts(self) -> tuple[Concept, ...]:
        return tuple(Concept(**asdict(concept)) for concept in self._guard.concepts.snapshot.concepts)

    async def aclose(self) -> None:
        if self._classifier is not None:
            await run_sync(self._classifier.close)

    def _screened(self, prompt: str, nearest: int, words: bool) -> Screening:
        with self._screening:
            return _screening(self._guard, self._guard.check(prompt), nearest, words)

    def _drawn(self, prompt: str, recipients: Sequence[PublicKey], steps: int | None) -> SealedImage:
        if self.pipeline is None:
            raise ToolError("no_pipeline", "no image model is loaded here")
        private = PrivateImagePipeline(
            self.pipeline, self._guard, seal_to=recipients, scrubber=self._scrubber, model=self._model
        )
        arguments: dict[str, Any] = {} if steps is None else {"num_inference_steps": steps}
        with self._drawing:
            try:
                image = private(prompt, **arguments)[0]
            except PromptRefusedError as refused:
                raise BlockedError(self._reason(refused)) from None
        if image.sealed is None:
            raise PipelineError("the pipeline gave no picture")
        return SealedImage(image.sealed, image.pii, image.outcome)

    def _reason(self, refused: PromptRefusedError) -> Screening:
        for verdict in refused.verdicts[0]:
            if isinstance(verdict, Verdict) and verdict.blocked:
                return _screening(self._guard, verdict, 5, words=False)
        raise PipelineError("a prompt was refused without a verdict")

    def _classified(self, query: bytes, keys: bytes | None) -> bytes:
        if self._classifier is None:
            raise ToolError("no_classifier", "no encrypted classifier is loaded here")
        if keys is not None:
            self._classifier.register(keys)
        return self._classifier.classify(query)


def load_tools(
    *, model: str | None = None, pipeline: str | None = None, classifiers: Sequence[str] = ("mnist",)
) -> LocalTools:
    """Tools over what is loaded here.

    Args:
        model: the guard's weights, a name, folder or hub id; the embedded default if left out.
        pipeline: a folder or hub id of a diffusers pipeline, read from safetensors alone; none if left out.
        classifiers: shipped models of encrypted inference by name, or folders.

    Raises:
        LatentGuardError, PrivacyError: one of them can't be loaded.
    """
    folders = {folder.name: folder for folder in map(model_folder, classifiers)}
    guard = LatentGuard.from_pretrained(model)
    pipe = None if pipeline is None else load_pipeline(pipeline)
    # A folder's path says where things lie here; the name is for everybody to read.
    name = "" if pipeline is None else Path(pipeline).name
    return LocalTools(guard, pipeline=pipe, classifier=Server(folders) if folders else None, model=name)


def load_pipeline(name: str) -> Any:
    """The text-to-image pipeline of a folder or hub id, on a GPU if there is one. Raises ToolError."""
    try:
        import torch
        from diffusers import DiffusionPipeline
    except ImportError as error:
        raise MissingDependencyError(
            "drawing needs diffusers; install it with: pip install 'latentguard[diffusers]'"
        ) from error
    on_gpu = torch.cuda.is_available()
    try:
        # From safetensors alone: the other format is pickle.
        pipe = DiffusionPipeline.from_pretrained(
            name, use_safetensors=True, **({"dtype": torch.float16} if on_gpu else {})
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ToolError("no_pipeline", f"{name}: no pipeline of diffusers can be loaded from it") from error
    pipe.set_progress_bar_config(disable=True)
    return pipe.to("cuda") if on_gpu else pipe


def fingerprint(guard: LatentGuard) -> str:
    """A name for the thresholds and concepts in force, 64 hexadecimal digits; another one as soon as any changes."""
    concepts = sorted(json.dumps(asdict(concept)) for concept in guard.concepts.snapshot.concepts)
    return hashlib.sha256(json.dumps([asdict(guard.policy), concepts], sort_keys=True).encode()).hexdigest()


def _screening(guard: LatentGuard, verdict: Verdict, nearest: int, words: bool) -> Screening:
    tokens = verdict.explain().tokens if words else ()
    return Screening(
        decision=verdict.decision,
        blocked=verdict.blocked,
        score=verdict.score,
        threshold=verdict.threshold,
        concept=verdict.concept,
        category=verdict.category,
        probability=verdict.probability,
        nearest=tuple(Score(concept=name, score=score) for name, score in verdict.scores(nearest)),
        words=tuple(Word(text=token.text, contribution=token.contribution) for token in tokens),
        policy=fingerprint(guard),
    )


async def _in_thread(work: Callable[[], _T]) -> _T:
    with as_tool_errors():
        return await run_sync(work)
