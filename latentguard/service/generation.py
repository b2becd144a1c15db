"""Private images: one at a time from the pipeline, screened before and after the prompt is made private, and sealed."""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from latentguard.errors import MissingDependencyError
from latentguard.service.errors import BusyError, ClosingError, DeadlineError
from privacy.keys import PublicKey
from privacy.pii import Replace, Scrubber
from privacy.pii.actions import PROMPT_WORDS
from privacy.pipeline import Guard, PrivateImage, PrivateImagePipeline

_WAITING = 8


@dataclass(frozen=True)
class Drawing:
    """What is to be drawn, and for whom; ``None`` leaves a choice to the pipeline. Sizes are in pixels."""

    prompt: str
    recipients: tuple[PublicKey, ...]
    images: int = 1
    steps: int | None = None
    guidance_scale: float | None = None
    width: int | None = None
    height: int | None = None
    seed: int | None = None


class Generator:
    """A diffusers pipeline behind a bounded queue: one drawing at a time, in a thread of its own.

    Raises:
        MissingDependencyError: personal data can't be found without Presidio.
    """

    def __init__(self, pipe: Callable[..., Any], model: str = "") -> None:
        self._pipe, self._model = pipe, model
        self._scrubber = Scrubber(Replace(PROMPT_WORDS))
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="generator")
        self._waiting = 0
        self._closing = False
        parameters = inspect.signature(type(pipe).__call__).parameters
        self._steps_told = "callback_on_step_end" in parameters

    @property
    def full(self) -> bool:
        """Whether one more drawing would be refused."""
        return self._waiting > _WAITING

    async def draw(
        self,
        drawing: Drawing,
        guard: Guard,
        *,
        deadline: float,
        progress: Callable[[int], None] | None = None,
    ) -> list[PrivateImage]:
        """The sealed images of a drawing. Whoever stops waiting, or the deadline (`time.monotonic`), ends it at a step.

        Raises:
            BusyError: too many drawings wait.
            DeadlineError: the deadline came first.
            PromptRefusedError: the guard blocks; nothing was drawn.
            PipelineError and others: as `PrivateImagePipeline`.
        """
        if self._closing:
            raise ClosingError("the service is shutting down")
        if self.full:
            raise BusyError(f"{self._waiting} drawings are waiting", retry_after=10)
        stop = threading.Event()
        self._waiting += 1
        work = asyncio.get_running_loop().run_in_executor(self._thread, self._draw, drawing, guard, stop, progress)
        try:
            return await asyncio.wait_for(asyncio.shield(work), deadline - time.monotonic())
        except asyncio.TimeoutError:
            raise DeadlineError("the drawing took too long") from None
        finally:
            stop.set()
            work.add_done_callback(self._finished)

    def close(self) -> None:
        """Waits for the drawing at work; it takes nothing more."""
        self._closing = True
        self._thread.shutdown()

    def _finished(self, work: asyncio.Future[list[PrivateImage]]) -> None:
        self._waiting -= 1
        if not work.cancelled():
            work.exception()  # seen, even if nobody waits for it any more

    def _draw(
        self, drawing: Drawing, guard: Guard, stop: threading.Event, progress: Callable[[int], None] | None
    ) -> list[PrivateImage]:
        if stop.is_set():
            raise DeadlineError("nobody waits for the drawing any more")

        def after_step(_pipe: Any, step: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            if stop.is_set():
                raise DeadlineError("nobody waits for the drawing any more")
            if progress is not None:
                progress(step + 1)
            return tensors

        arguments = self._arguments(drawing)
        if self._steps_told:
            arguments["callback_on_step_end"] = after_step
        private = PrivateImagePipeline(
            self._pipe, guard, seal_to=drawing.recipients, scrubber=self._scrubber, model=self._model
        )
        return private(drawing.prompt, num_images_per_prompt=drawing.images, **arguments)

    @staticmethod
    def _arguments(drawing: Drawing) -> dict[str, Any]:
        given: dict[str, Any] = {
            "num_inference_steps": drawing.steps,
            "guidance_scale": drawing.guidance_scale,
            "width": drawing.width,
            "height": drawing.height,
        }
        arguments = {name: value for name, value in given.items() if value is not None}
        if drawing.seed is not None:
            import torch

            arguments["generator"] = torch.Generator("cpu").manual_seed(drawing.seed)
        return arguments


def load_pipeline(name: str) -> Any:
    """The diffusers pipeline of a folder or hub id, on the GPU if there is one.

    Raises:
        MissingDependencyError: diffusers isn't installed.
        PipelineError: it can't be loaded.
    """
    try:
        import torch
        from diffusers import DiffusionPipeline
    except ImportError:
        raise MissingDependencyError('drawing needs diffusers: pip install "latentguard[diffusers]"') from None
    from latentguard.errors import PipelineError

    try:
        pipe = DiffusionPipeline.from_pretrained(name, use_safetensors=True)  # never a pickle
    except (OSError, ValueError, ImportError) as error:
        raise PipelineError(f"pipeline {name}: can't be loaded ({type(error).__name__})") from error
    pipe.set_progress_bar_config(disable=True)
    return pipe.to("cuda") if torch.cuda.is_available() else pipe


def sealed(images: Sequence[PrivateImage]) -> list[bytes]:
    """The sealed files of images that weren't refused."""
    return [image.sealed for image in images if image.sealed is not None]
