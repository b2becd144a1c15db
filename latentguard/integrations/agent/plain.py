"""The tools without privacy, for a user who allows them: they see everything, and run in the user's own process."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from typing import Any, TypeVar

from anyio.to_thread import run_sync
from PIL.Image import Image

from latentguard.errors import ToolError
from latentguard.integrations.tools.failures import as_tool_errors
from privacy.encrypted_inference.data import load_picture
from privacy.encrypted_inference.weights import Weights, load_weights

_T = TypeVar("_T")


class PlainTools:
    """`text-to-image` with a pipeline of diffusers, and `image-classification` with a network of encrypted inference.

    Whoever calls `draw` has to have had the prompt screened: `Agent` does.
    """

    def __init__(self, *, pipeline: Any = None, network: str | None = None) -> None:
        self._pipeline = pipeline
        self._weights: Weights | None = None if network is None else load_weights(network)

    @property
    def offered(self) -> frozenset[str]:
        """The names of the registry's tools that can be used."""
        there = {"text-to-image": self._pipeline is not None, "image-classification": self._weights is not None}
        return frozenset(name for name, offered in there.items() if offered)

    async def draw(self, prompt: str, *, steps: int | None = None) -> bytes:
        """The picture as PNG. Raises ToolError."""
        return await _in_thread(lambda: self._drawn(prompt, steps))

    async def label(self, picture: bytes) -> str:
        """The label of a picture. Raises ToolError."""
        return await _in_thread(lambda: self._labelled(picture))

    def _drawn(self, prompt: str, steps: int | None) -> bytes:
        if self._pipeline is None:
            raise ToolError("no_pipeline", "no image model is loaded here")
        arguments: dict[str, Any] = {} if steps is None else {"num_inference_steps": steps}
        image = self._pipeline(prompt, **arguments).images[0]
        if not isinstance(image, Image):
            raise ToolError("no_picture", "the pipeline gave no picture")
        content = BytesIO()
        image.save(content, "PNG")
        return content.getvalue()

    def _labelled(self, picture: bytes) -> str:
        if self._weights is None:
            raise ToolError("no_classifier", "no classifier is loaded here")
        architecture = self._weights.architecture
        pixels = load_picture(BytesIO(picture), architecture.side)
        return architecture.labels[int(self._weights.logits(pixels[None]).argmax())]


async def _in_thread(work: Callable[[], _T]) -> _T:
    with as_tool_errors():
        return await run_sync(work)
