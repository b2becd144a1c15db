"""What can go wrong in the service itself, and how every error is told over HTTP (RFC 9457).

An error's ``code`` is stable and for programs, its ``detail`` for people. Neither holds a prompt, a path or a secret.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import latentguard.errors as guard_errors
import privacy.errors as privacy_errors
from latentguard.errors import ServiceError
from latentguard.service.access import ForbiddenError, KeyNotFoundError, KeyRequestError, NotAuthenticatedError
from latentguard.service.audit_records import AuditError
from latentguard.service.database import DatabaseError
from latentguard.service.limits import RateLimitedError
from latentguard.service.lockout import LockedOutError

if TYPE_CHECKING:
    from latentguard.verdict import Verdict


class BusyError(ServiceError):
    """There is no room for more work now; ``retry_after`` [s] is when there may be."""

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class DeadlineError(ServiceError):
    """The request's time is over before it could be answered."""


class ClosingError(ServiceError):
    """The service is shutting down and takes nothing more."""


class AuditUnavailableError(ServiceError):
    """The audit log can't be written, so nothing is answered."""


class RequestError(ServiceError):
    """A request can't be used as it is; the message says why."""


class TooManyPromptsError(RequestError):
    """A request has more prompts than it may have, or a prompt more characters."""


class BodyTooLargeError(ServiceError):
    """The request's body is longer than it may be."""


class BodyTooSlowError(ServiceError):
    """The request's body took too long to arrive."""


class MediaTypeError(ServiceError):
    """The body is of another media type than the endpoint takes."""


class UnsupportedInputError(RequestError):
    """A moderation request holds something else than text."""


class PreconditionFailedError(ServiceError):
    """The policy is another one than the request was made for."""


class ConceptExistsError(ServiceError):
    """The concept is in the bank already."""


class ConceptNotFoundError(ServiceError):
    """There is no such concept in the bank."""


class JobNotFoundError(ServiceError):
    """There is no such job of this key."""


class JobNotDoneError(ServiceError):
    """The job has no result: it isn't over, or it ended without one."""


class NoPipelineError(ServiceError):
    """The service was started without an image pipeline."""


class NoClassifierError(ServiceError):
    """The service was started without encrypted classifiers."""


class PromptsBlockedError(ServiceError):
    """Prompts to draw are blocked; ``verdicts`` are those that blocked, ``policy`` the fingerprint they belong to."""

    def __init__(self, verdicts: Sequence[Verdict], policy: str) -> None:
        super().__init__("the policy does not allow this prompt, and nothing was drawn")
        self.verdicts = tuple(verdicts)
        self.policy = policy


class Problem(NamedTuple):
    """How a kind of error is told: HTTP ``status``, stable ``code``, fixed ``title``.

    ``told`` says whether the error's own message may be shown; it is where that message is about the request alone.
    """

    status: int
    code: str
    title: str
    told: bool = True


INTERNAL = Problem(500, "internal_error", "Internal error", told=False)
INVALID = Problem(422, "invalid_request", "The request can't be used")
MALFORMED = Problem(400, "malformed_body", "The body isn't JSON as announced", told=False)
NOT_FOUND = Problem(404, "not_found", "Nothing is here", told=False)
NOT_ALLOWED = Problem(405, "method_not_allowed", "This method isn't offered here", told=False)
BAD_HOST = Problem(400, "unknown_host", "The service doesn't go by this host name", told=False)

# From the most special class to the most general: the first that fits counts.
PROBLEMS: dict[type[Exception], Problem] = {
    NotAuthenticatedError: Problem(401, "not_authenticated", "A valid API key is needed", told=False),
    LockedOutError: Problem(429, "locked_out", "Too many failed attempts from this address", told=False),
    ForbiddenError: Problem(403, "forbidden", "The API key's scopes don't cover this"),
    KeyRequestError: Problem(422, "invalid_key_request", "A key can't be made so"),
    KeyNotFoundError: Problem(404, "key_not_found", "There is no such key", told=False),
    RateLimitedError: Problem(429, "rate_limited", "The API key's rate limit is reached", told=False),
    BusyError: Problem(429, "busy", "The service has all the work it can hold"),
    DeadlineError: Problem(504, "deadline_exceeded", "It took too long", told=True),
    ClosingError: Problem(503, "shutting_down", "The service is shutting down", told=False),
    AuditUnavailableError: Problem(503, "audit_unavailable", "The audit log can't be written", told=False),
    AuditError: Problem(503, "audit_unavailable", "The audit log can't be written", told=False),
    TooManyPromptsError: Problem(422, "too_many_prompts", "More or longer prompts than a request may have"),
    UnsupportedInputError: Problem(400, "unsupported_input", "Only text can be moderated"),
    RequestError: INVALID,
    BodyTooLargeError: Problem(413, "body_too_large", "The body is longer than it may be"),
    BodyTooSlowError: Problem(408, "body_too_slow", "The body took too long to arrive", told=False),
    MediaTypeError: Problem(415, "unsupported_media_type", "The body is of another media type than this takes"),
    PreconditionFailedError: Problem(412, "policy_changed", "The policy has changed meanwhile"),
    ConceptExistsError: Problem(409, "concept_exists", "The concept is in the bank already"),
    ConceptNotFoundError: Problem(404, "concept_not_found", "There is no such concept in the bank"),
    JobNotFoundError: Problem(404, "job_not_found", "There is no such job of this key", told=False),
    JobNotDoneError: Problem(409, "job_not_done", "The job has no result"),
    NoPipelineError: Problem(501, "no_pipeline", "The service was started without an image pipeline", told=False),
    NoClassifierError: Problem(
        501, "no_classifier", "The service was started without encrypted classifiers", told=False
    ),
    PromptsBlockedError: Problem(422, "prompt_blocked", "The prompt is blocked"),
    guard_errors.PromptError: Problem(422, "invalid_prompt", "A prompt can't be scored"),
    guard_errors.ConceptError: Problem(422, "invalid_concept", "A concept can't be used"),
    guard_errors.PolicyError: Problem(422, "invalid_policy", "The policy can't be used"),
    guard_errors.DataError: INVALID,
    guard_errors.UnscreenedError: Problem(422, "unscreened", "Something that would steer an image can't be screened"),
    DatabaseError: Problem(503, "database_unavailable", "The database can't be reached", told=False),
    ServiceError: Problem(503, "unavailable", "The service can't answer now", told=False),
    guard_errors.LatentGuardError: Problem(503, "guard_unavailable", "The guard can't judge now", told=False),
    privacy_errors.KeyFileError: Problem(
        422, "invalid_public_key", "A recipient's public key can't be used", told=False
    ),
    privacy_errors.SessionExpiredError: Problem(409, "session_expired", "The keys aren't here; send them again"),
    privacy_errors.CapacityError: Problem(503, "no_capacity", "There are as many sessions as the service holds"),
    privacy_errors.WorkerError: Problem(503, "worker_failed", "The evaluating process failed; send it again"),
    privacy_errors.InferenceError: Problem(422, "invalid_message", "The message can't be used"),
    privacy_errors.PipelineError: Problem(422, "invalid_arguments", "The image can't be made as asked"),
    privacy_errors.VaultError: Problem(503, "vault_unavailable", "The vault can't be reached", told=False),
    privacy_errors.PrivacyError: Problem(503, "unavailable", "The service can't answer now", told=False),
}


@dataclass(frozen=True)
class Told:
    """An error as a client is told it."""

    problem: Problem
    detail: str
    retry_after: float | None = None


def problem_of(kind: type[Exception]) -> Problem:
    """How errors of a kind are told."""
    return next((problem for known, problem in PROBLEMS.items() if issubclass(kind, known)), INTERNAL)


def told(error: Exception) -> Told:
    """How a client is told an error; anything that nobody awaited is an internal one, without details."""
    problem = problem_of(type(error))
    return Told(problem, str(error) if problem.told else problem.title, getattr(error, "retry_after", None))
