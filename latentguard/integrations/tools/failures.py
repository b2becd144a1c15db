"""Any failure as a ToolError: a stable code and a message that is safe to show to whoever called."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager

from latentguard.errors import LatentGuardError, PromptError, ToolError
from privacy.errors import InferenceError, KeyFileError, PrivacyError

_log = logging.getLogger(__name__)


@contextmanager
def as_tool_errors() -> Iterator[None]:
    """Raises every failure inside as a ToolError. What wasn't foreseen is logged by its type and told as internal."""
    try:
        yield
    except ToolError:
        raise
    except (LatentGuardError, PrivacyError) as error:
        raise ToolError(_code(error), str(error)) from error
    except Exception as error:
        # Its message may quote a prompt, so only where it was raised is told.
        frame = error.__traceback__
        while frame is not None and frame.tb_next is not None:
            frame = frame.tb_next
        where = "" if frame is None else f" at {frame.tb_frame.f_code.co_name}:{frame.tb_lineno}"
        _log.error("a tool failed with %s%s", type(error).__name__, where)
        raise ToolError("internal_error", "the tool failed; its log says where") from None


def _code(error: LatentGuardError | PrivacyError) -> str:
    if isinstance(error, PromptError):
        return "invalid_prompt"
    if isinstance(error, KeyFileError):
        return "invalid_public_key"
    if isinstance(error, InferenceError):
        return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(error).__name__.removesuffix("Error")).lower()
    return "not_possible"
