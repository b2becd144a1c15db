"""One line guards a diffusers pipeline: no blocked prompt reaches a denoising step.

::

    from latentguard.integrations.diffusers import guard_pipeline

    pipe = guard_pipeline(pipe, guard)      # on_block="raise"; or "blank", or "replace" with a replacement
    output = pipe("a red fox in the snow")
    output.verdicts[0].score

docs/diffusers.md says what is screened, and how.
"""

from __future__ import annotations

from typing import TypeVar

try:
    import diffusers  # noqa: F401
    import transformers  # noqa: F401
except ImportError as error:
    from latentguard.errors import MissingDependencyError

    raise MissingDependencyError(
        "guarding pipelines needs diffusers and transformers: pip install 'latentguard[diffusers]'"
    ) from error

from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker

from latentguard.guard import LatentGuard
from latentguard.integrations.diffusers.outputs import GuardedTuple, image_check_of
from latentguard.integrations.diffusers.pipelines import is_guarded, put_on, take_off
from latentguard.integrations.diffusers.settings import ImageCheck, OnBlock, Replacement, Settings

__all__ = ["GuardedTuple", "guard_pipeline", "is_guarded", "unguard_pipeline"]

Pipeline = TypeVar("Pipeline")


def guard_pipeline(
    pipe: Pipeline,
    guard: LatentGuard,
    *,
    on_block: OnBlock = "raise",
    replacement: Replacement | None = None,
    screen_negative: bool = False,
    allow_unscreened: bool = False,
    image_check: ImageCheck | StableDiffusionSafetyChecker | None = None,
) -> Pipeline:
    """Puts a guard on a text-to-image pipeline, in place, and returns it.

    A call then screens its prompts before the first denoising step, and its output has ``verdicts``, the worst one of
    each prompt (None for an empty prompt), and ``blanked``, for each image whether it was made blank. Class, signature
    and components stay. A pipeline made of the guarded one's denoiser, by ``from_pipe`` or otherwise, is guarded as it
    is made; guarding a guarded pipeline again changes how.

    Args:
        pipe: a pipeline of diffusers, modular ones included.
        guard: the guard. Where its encoder is the pipeline's ``text_encoder`` (a CLIP text tower with the same weights)
            it reads the states that the pipeline computes anyway; otherwise it encodes the text itself.
        on_block: "raise" :class:`latentguard.PromptBlocked` if any prompt is blocked; leave "blank" images in the
            place of blocked ones and make the others as if nothing had happened; or "replace" blocked prompts.
        replacement: for "replace": the prompt to take instead, or a callable that gets the verdict and gives one. It is
            screened as well.
        screen_negative: screen negative prompts too.
        allow_unscreened: let pass what can't be screened, where it would be refused with
            :class:`latentguard.UnscreenedError`: embeddings of unknown origin, image prompts, textual-inversion tokens
            that the guard's encoder doesn't know, calls of the denoiser itself.
        image_check: looks at the images made: a callable from a list of PIL images to a list of whether each is unsafe,
            or diffusers' StableDiffusionSafetyChecker. What it finds is made blank, whatever ``on_block`` is.

    Raises:
        PipelineError: an option can't be used, or the pipeline can't be guarded: it is none, or takes something that
            isn't understood. The message names its class.
    """
    check = image_check_of(image_check) if isinstance(image_check, StableDiffusionSafetyChecker) else image_check
    put_on(pipe, Settings(guard, on_block, replacement, screen_negative, allow_unscreened, check))
    return pipe


def unguard_pipeline(pipe: Pipeline) -> Pipeline:
    """Takes the guard off a pipeline, without a trace, and returns it; nothing happens to one that has none.

    Pipelines that were made from it stay guarded, and so do the models that they share with it.
    """
    take_off(pipe)
    return pipe
