"""What the tools of the MCP server take and give; their JSON schemas are made of these."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from latentguard.integrations.mcp.files import NAME
from latentguard.integrations.tools.base import MOST_PROMPT_CHARS, MOST_RECIPIENTS, MOST_STEPS, Screening

# What the largest messages of `privacy.encrypted_inference` take: the evaluation keys, and a batched query.
MOST_CIPHERTEXT_BYTES = 200 * 2**20

Prompt = Annotated[
    str, Field(min_length=1, max_length=MOST_PROMPT_CHARS, description="the text that an image is to be drawn from")
]
FileName = Annotated[str, Field(pattern=NAME, description="a plain name without a path")]
Base64 = Annotated[str, Field(min_length=1, pattern=r"^[A-Za-z0-9+/]+={0,2}$")]


class _Arguments(BaseModel):
    # Strict: "5" is no number, and 1 is not true.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)


class ScreenArguments(_Arguments):
    """The arguments of `screen_prompt`."""

    prompt: Prompt
    nearest: int = Field(default=5, ge=1, le=50, description="how many of the nearest concepts are told")
    words: bool = Field(default=False, description="tell each word's share of the score as well")


class GenerateArguments(_Arguments):
    """The arguments of `generate_private_image`."""

    prompt: Prompt
    public_keys: Annotated[
        list[Annotated[str, Field(min_length=10, max_length=4096)]],
        Field(
            min_length=1,
            max_length=MOST_RECIPIENTS,
            description="whom the image is sealed to: lines as `python -m privacy keygen` prints them, 'x25519:...'",
        ),
    ]
    steps: int | None = Field(
        default=None, ge=1, le=MOST_STEPS, description="denoising steps; the model's own if left out"
    )
    file_name: FileName | None = Field(
        default=None, description="name of the new file in the server's output folder; a random one if left out"
    )


class ClassifyArguments(_Arguments):
    """The arguments of `classify_encrypted_image`; each message comes as a file's name or in base64."""

    query_file: FileName | None = Field(
        default=None, description="the encrypted query, a file in the server's input folder"
    )
    query: Base64 | None = Field(default=None, description="the encrypted query itself, in base64")
    keys_file: FileName | None = Field(
        default=None, description="the client's evaluation keys, a file in the input folder"
    )
    keys: Base64 | None = Field(default=None, description="the client's evaluation keys themselves, in base64")
    file_name: FileName | None = Field(
        default=None,
        description="name of the answer's new file in the server's output folder; a random one if left out",
    )

    @model_validator(mode="after")
    def _one_of_each(self) -> ClassifyArguments:
        if (self.query is None) == (self.query_file is None):
            raise ValueError("give query_file or query, and not both")
        if self.keys is not None and self.keys_file is not None:
            raise ValueError("give keys_file or keys, and not both")
        return self


class Failure(BaseModel):
    """Why a tool did nothing."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    code: str = Field(description="a stable word, such as 'prompt_blocked' or 'invalid_arguments'")
    message: str


class Sealed(BaseModel):
    """What came out, which only the key's owner can read."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    uri: str = Field(description="of the resource in this result that holds it, or of the file")
    file_name: str | None = Field(description="its name in the server's output folder; null if it is embedded")
    bytes: int
    sha256: str


class ScreenResult(BaseModel):
    """The result of `screen_prompt`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    status: Literal["screened", "failed"]
    verdict: Screening | None = None
    failure: Failure | None = None


class GenerateResult(BaseModel):
    """The result of `generate_private_image`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    status: Literal["sealed", "blocked", "failed"]
    image: Sealed | None = Field(default=None, description="the sealed PNG; nobody but the keys' owners can open it")
    personal_data: dict[str, int] | None = Field(
        default=None, description="how much personal data was taken out of the prompt, by type"
    )
    attributes: str | None = Field(default=None, description="what shuffling of sensitive attributes did to the prompt")
    verdict: Screening | None = Field(default=None, description="why the prompt was blocked")
    failure: Failure | None = None


class ClassifyResult(BaseModel):
    """The result of `classify_encrypted_image`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    status: Literal["classified", "failed"]
    answer: Sealed | None = Field(
        default=None, description="the encrypted answer; nobody but the client can decrypt it"
    )
    failure: Failure | None = None
