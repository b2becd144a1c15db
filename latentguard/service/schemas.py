"""What goes in and out over HTTP. Every model has an example, which a test sends to a running service."""

from __future__ import annotations

import unicodedata
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints
from pydantic.config import JsonDict

from latentguard.policy import Decision
from latentguard.records import ConceptEntry
from latentguard.service.access import Scope
from latentguard.service.jobs import State
from latentguard.verdict import Explanation, Verdict

_MOST_PROMPTS = 100_000
_MOST_CONCEPTS = 1000


def _printable(text: str) -> str:
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in text):
        raise ValueError("holds control characters")
    return text


Line = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200), AfterValidator(_printable)
]
Number = Annotated[float, Field(allow_inf_nan=False, ge=-1e6, le=1e6)]
Fingerprint = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Prompt = Annotated[str, StringConstraints(min_length=1)]

_FINGERPRINT = "9b4f2c7b1d0e5a6f8c3d2e1f0a9b8c7d6e5f4a3b2c1d0e9f8a7b6c5d4e3f2a1b"
_REQUEST = "5f0c1a2b3c4d5e6f708192a3b4c5d6e7"


class Request(BaseModel):
    """What comes in: a field that isn't known is an error, and nothing is taken for another type than it has."""

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)


class Response(BaseModel):
    """What goes out."""


# --- errors


class ProblemBody(Response):
    """An error (RFC 9457). Programs go by `code`, which never changes its meaning."""

    type: str
    title: str
    status: int
    code: str
    detail: str
    request_id: str
    errors: list[dict[str, Any]] | None = Field(None, description="where a request doesn't fit, if it doesn't")
    policy: str | None = Field(None, description="what was in force, where a prompt is blocked")
    verdicts: list[VerdictBody] | None = Field(None, description="of prompts that are blocked")


# --- screening


class ScreenRequest(Request):
    """One prompt or many."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"prompt": "a photo of a golden retriever"},
                {"prompts": ["a red wine on a table", "a photo of a beheading"], "top_k": 2, "explain": True},
            ]
        }
    )

    prompt: Prompt | None = Field(None, description="the prompt to screen; or give `prompts`")
    prompts: Annotated[list[Prompt], Field(min_length=1, max_length=_MOST_PROMPTS)] | None = None
    explain: bool = Field(False, description="also what each word added to the score; 16 prompts at most")
    top_k: int = Field(5, ge=1, le=50, description="how many nearest concepts")
    wait: bool = Field(True, description="false hands it in as a job; more prompts than a request may have always are")


class ConceptScore(Response):
    """A concept and the prompt's score against it."""

    concept: str
    score: float


class WordBody(Response):
    """A word of the normalised prompt from `start` to `end`, and what it added to the score."""

    text: str
    start: int
    end: int
    contribution: float


class ExplanationBody(Response):
    """The score taken apart: the words, the prompt as a whole and the constants add up to it."""

    words: list[WordBody]
    whole_prompt: float
    bias: float

    @classmethod
    def of(cls, explanation: Explanation) -> ExplanationBody:
        """Of an explanation of the guard's."""
        words = [WordBody(**vars(token)) for token in explanation.tokens]
        return cls(words=words, whole_prompt=explanation.whole_prompt, bias=explanation.bias)


class VerdictBody(Response):
    """The answer for one prompt."""

    blocked: bool
    decision: Decision
    score: float
    threshold: float = Field(description="from which score on this concept blocks")
    concept: str = Field(description="the concept that decided")
    category: str | None
    probability: float | None = Field(
        description="that the prompt is harmful, were harmful and harmless ones equally frequent"
    )
    concepts: list[ConceptScore] = Field(description="the nearest concepts")
    explanation: ExplanationBody | None = None

    @classmethod
    def of(cls, verdict: Verdict, top_k: int, explanation: Explanation | None = None) -> VerdictBody:
        """Of a verdict of the guard's, with its ``top_k`` nearest concepts."""
        return cls(
            blocked=verdict.blocked,
            decision=verdict.decision,
            score=verdict.score,
            threshold=verdict.threshold,
            concept=verdict.concept,
            category=verdict.category,
            probability=verdict.probability,
            concepts=[ConceptScore(concept=name, score=score) for name, score in verdict.scores(top_k)],
            explanation=None if explanation is None else ExplanationBody.of(explanation),
        )


_VERDICT: JsonDict = {
    "blocked": True,
    "decision": "block",
    "score": 0.94,
    "threshold": -0.6,
    "concept": "beheading",
    "category": "violence",
    "probability": 0.72,
    "concepts": [{"concept": "beheading", "score": 0.94}, {"concept": "exploding head", "score": -2.42}],
}


class ScreenResponse(Response):
    """The verdicts, in the order of the prompts."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"request_id": _REQUEST, "policy": _FINGERPRINT, "results": [_VERDICT]}]}
    )

    request_id: str
    policy: str = Field(description="fingerprint of the policy that decided; of the last, if it changed meanwhile")
    results: list[VerdictBody]


# --- concepts and policy


class ConceptBody(Response):
    """A concept of the bank."""

    name: str
    category: str | None
    threshold: float | None = Field(description="its own, if it has one")


class ConceptList(Response):
    """The bank."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "policy": _FINGERPRINT,
                    "total": 514,
                    "concepts": [{"name": "beheading", "category": "violence", "threshold": -0.8}],
                }
            ]
        }
    )

    policy: str
    total: int = Field(description="how many there are, whatever the filter and the limit")
    concepts: list[ConceptBody]


class ConceptRequest(Request):
    """A concept to add."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"name": "knife fight", "category": "violence"}]})

    name: Line
    category: Line | None = None
    threshold: Number | None = Field(None, description="from which score on it blocks, instead of the policy's")

    def entry(self) -> ConceptEntry:
        """The same for the bank."""
        return ConceptEntry(self.name, self.category, self.threshold)


class PolicyBody(Response):
    """What is in force."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"policy": _FINGERPRINT, "version": 3, "threshold": -0.6, "concepts": 514, "categories": []}]
        }
    )

    policy: str = Field(description="its fingerprint, also the ETag")
    version: int = Field(description="how often it was changed through the service")
    threshold: float
    concepts: int
    categories: list[str]


class PolicyRequest(Request):
    """A new threshold."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"threshold": -0.5}]})

    threshold: Number


class ChangedBody(Response):
    """A recent prompt whose decision would be another one."""

    prompt: str
    time: float
    before: Decision
    after: Decision
    concept: str
    score: float


class PreviewBody(Response):
    """What a change would do to recent traffic; nothing is changed."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"prompts": 500, "newly_blocked": 0, "newly_allowed": 0, "changed": []}]}
    )

    prompts: int
    newly_blocked: int
    newly_allowed: int
    changed: list[ChangedBody]


class CalibrateRequest(Request):
    """Harmless prompts, as users write them, and the share of them that may be blocked."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"prompts": [f"a watercolour of {i + 2} boats on a lake" for i in range(9)], "rate": 0.1}]
        }
    )

    prompts: Annotated[list[Prompt], Field(min_length=1, max_length=_MOST_PROMPTS)]
    rate: Annotated[float, Field(ge=1e-6, le=0.999, allow_inf_nan=False)] = 0.01
    apply: bool = Field(False, description="put the threshold in force")
    wait: bool = Field(True, description="false hands it in as a job; more prompts than a request may have always are")


class CalibrateResponse(Response):
    """The threshold and what it promises."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "threshold": -0.71,
                    "rate": 0.01,
                    "prompts": 1000,
                    "blocked": 9,
                    "bound": 0.016,
                    "guarantee": "a further harmless prompt of the same kind is blocked with at most 1%",
                    "applied": False,
                    "policy": _FINGERPRINT,
                }
            ]
        }
    )

    threshold: float
    rate: float
    prompts: int = Field(description="how many it was set on: each counts once")
    blocked: int
    bound: float = Field(description="the rate that holds with 95% confidence over the draw of these prompts")
    guarantee: str
    applied: bool
    policy: str


# --- images


class GenerateRequest(Request):
    """A prompt to draw, and whose public keys the image is sealed to."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "prompt": "a red wine on the table",
                    "recipients": ["RECIPIENT"],
                    "steps": 2,
                    "format": "json",
                }
            ]
        }
    )

    prompt: Prompt
    recipients: Annotated[list[Annotated[str, StringConstraints(max_length=4096)]], Field(min_length=1, max_length=16)]
    images: int = Field(1, ge=1, le=4)
    steps: int | None = Field(None, ge=1, le=200)
    guidance_scale: Annotated[float, Field(ge=0, le=50, allow_inf_nan=False)] | None = None
    width: int | None = Field(None, ge=64, le=2048, multiple_of=8)
    height: int | None = Field(None, ge=64, le=2048, multiple_of=8)
    seed: int | None = Field(None, ge=0, lt=2**63)
    format: Literal["file", "json"] = Field("file", description="the sealed file itself, or base64 in JSON")
    wait: bool = Field(True, description="false hands it in as a job, whose result is JSON")


class GenerateResponse(Response):
    """Sealed images, which only the recipients can open."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"request_id": _REQUEST, "images": ["TEdTRUFMRUQ="], "personal_data": {}}]}
    )

    request_id: str
    images: list[str] = Field(description="sealed files in base64")
    personal_data: dict[str, int] = Field(description="how much was taken out of the prompt, by kind")


class SessionBody(Response):
    """Evaluation keys that the service holds."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"fingerprint": "00" * 32, "seconds": 3600}]})

    fingerprint: str
    seconds: int = Field(description="how long after their last use they are kept")


# --- jobs


class JobBody(Response):
    """A job. What it made is at `/v1/jobs/ID/result` once it is done."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "0123456789abcdef0123456789abcdef",
                    "kind": "screen",
                    "state": "running",
                    "done": 128,
                    "total": 1000,
                    "created": 1790000000.0,
                    "updated": 1790000003.5,
                }
            ]
        }
    )

    id: str
    kind: str
    state: State
    done: int
    total: int
    created: float
    updated: float
    error: str | None = Field(None, description="the code of what ended it")


class JobList(Response):
    """The jobs of the key, newest first."""

    jobs: list[JobBody]


# --- moderation, as OpenAI's API has it


class TextPart(BaseModel):
    """A text of an input of several parts."""

    type: Literal["text"]
    text: Prompt


class ImagePart(BaseModel):
    """An image of such an input, which is refused."""

    type: Literal["image_url"]
    image_url: dict[str, Any]


class ModerationRequest(Request):
    """As OpenAI's API takes it; text only."""

    model_config = ConfigDict(
        extra="ignore",
        hide_input_in_errors=True,
        json_schema_extra={"examples": [{"input": "a photo of a beheading"}]},
    )

    input: (
        Prompt
        | Annotated[list[Prompt], Field(min_length=1, max_length=_MOST_PROMPTS)]
        | Annotated[
            list[Annotated[TextPart | ImagePart, Field(discriminator="type")]], Field(min_length=1, max_length=64)
        ]
    )
    model: Annotated[str, StringConstraints(max_length=200)] | None = None


class ModerationResult(Response):
    """One input's result: for each category whether it is flagged, its probability, and what it was told from."""

    flagged: bool
    categories: dict[str, bool]
    category_scores: dict[str, float]
    category_applied_input_types: dict[str, list[str]]


class ModerationResponse(Response):
    """As OpenAI's API answers."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "modr-" + _REQUEST,
                    "model": "latentguard",
                    "results": [
                        {
                            "flagged": True,
                            "categories": {"violence": True},
                            "category_scores": {"violence": 0.72},
                            "category_applied_input_types": {"violence": ["text"]},
                        }
                    ],
                }
            ]
        }
    )

    id: str
    model: str
    results: list[ModerationResult]


# --- administration


class KeyRequest(Request):
    """A key to make."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"name": "web shop", "scopes": ["screen"], "expires_in_days": 90}]}
    )

    name: Annotated[str, StringConstraints(min_length=1, max_length=64)]
    scopes: Annotated[list[Annotated[Scope, Field(strict=False)]], Field(min_length=1, max_length=3)]
    expires_in_days: int | None = Field(None, ge=1, le=3650)


class KeyBody(Response):
    """A key without its secret; times are ISO 8601 in UTC."""

    id: str
    name: str
    scopes: list[Scope]
    created: str
    expires: str | None
    last_used: str | None
    revoked: str | None


class NewKeyBody(KeyBody):
    """A key that was just made or rotated."""

    token: str = Field(description="the whole secret; it is never shown again")


class KeyList(Response):
    """All keys."""

    keys: list[KeyBody]


class RotateRequest(Request):
    """How long the old secret stays good."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"overlap_minutes": 10}]})

    overlap_minutes: int = Field(0, ge=0, le=30 * 24 * 60)


class AuditBody(Response):
    """An entry of the audit log; a prompt is there as keyed hash alone."""

    sequence: int
    time: str
    actor: str
    action: str
    policy: str | None
    verdict: str | None
    score: float | None
    concept: str | None
    prompt_hash: str | None
    record: str | None
    details: dict[str, Any]
    previous: str
    mac: str


class AuditList(Response):
    """Entries, newest first."""

    entries: list[AuditBody]


class AuditReportBody(Response):
    """What a check of the whole log found."""

    intact: bool
    entries: int
    message: str


class AlertBody(Response):
    """Something that a key did; `time` is in seconds since 1970."""

    id: int
    time: float
    kind: str
    key_id: str
    summary: str
    details: dict[str, Any]


class AlertList(Response):
    """Alerts, newest first."""

    alerts: list[AlertBody]


# --- the state of the service


class Health(Response):
    """The process runs."""

    status: Literal["ok"]


class Readiness(Response):
    """What has to be well for requests to be answered."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"ready": True, "checks": {"guard": True, "database": True, "queue": True}}]}
    )

    ready: bool
    checks: dict[str, bool]


ProblemBody.model_rebuild()
