"""The MCP server: three tools and two resources over whatever `Tools` stand behind it."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from anyio.to_thread import run_sync
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.shared.exceptions import MCPError
from mcp_types import (
    INTERNAL_ERROR,
    INVALID_PARAMS,
    BlobResourceContents,
    CallToolRequestParams,
    CallToolResult,
    EmbeddedResource,
    ListResourcesResult,
    ListToolsResult,
    PaginatedRequestParams,
    ReadResourceRequestParams,
    ReadResourceResult,
    Resource,
    ResourceLink,
    TextContent,
    TextResourceContents,
    Tool,
    ToolAnnotations,
)
from pydantic import BaseModel, ValidationError

from latentguard import __version__
from latentguard.errors import ToolError
from latentguard.integrations.mcp.files import Folder
from latentguard.integrations.mcp.messages import (
    MOST_CIPHERTEXT_BYTES,
    ClassifyArguments,
    ClassifyResult,
    Failure,
    GenerateArguments,
    GenerateResult,
    ScreenArguments,
    ScreenResult,
    Sealed,
)
from latentguard.integrations.tools.base import BlockedError, ToolName, Tools
from latentguard.integrations.tools.failures import as_tool_errors
from privacy.keys import PublicKey

POLICY_URI = "latentguard://policy"
CONCEPTS_URI = "latentguard://concepts"
_INSTRUCTIONS = (
    "Screens text-to-image prompts, draws images that only their owner can open, and classifies images that stay "
    "encrypted. Screen a prompt before you give it to any image model, and don't draw one that is blocked, nor a "
    "rewording of it."
)


@dataclass(frozen=True)
class Access:
    """The tools that one caller may use, and the folders whose files they may name; None for no files."""

    tools: Tools
    inputs: Folder | None = None
    outputs: Folder | None = None


Context = ServerRequestContext[Any, Any]


def mcp_server(access: Callable[[Context], Access]) -> Server[Any]:
    """The server. `access` says, for each request, what its caller may use."""
    handlers = _Handlers(access)
    return Server(
        "latentguard",
        version=__version__,
        title="latentguard",
        description="Safe and private text-to-image generation",
        instructions=_INSTRUCTIONS,
        on_list_tools=handlers.list_tools,
        on_call_tool=handlers.call_tool,
        on_list_resources=handlers.list_resources,
        on_read_resource=handlers.read_resource,
    )


class _Outcome(NamedTuple):
    """A structured result, a line for whoever reads, what is attached, and whether it is an error."""

    result: BaseModel
    text: str
    attached: tuple[EmbeddedResource | ResourceLink, ...] = ()
    is_error: bool = False


@dataclass(frozen=True)
class _Offer:
    """A tool as it is listed, and what it does."""

    title: str
    description: str
    arguments: type[BaseModel]
    result: type[BaseModel]
    annotations: ToolAnnotations
    call: Callable[[Access, Any], Awaitable[_Outcome]] = field(repr=False)

    def listed(self, name: str) -> Tool:
        return Tool(
            name=name,
            title=self.title,
            description=self.description,
            input_schema=self.arguments.model_json_schema(),
            output_schema=self.result.model_json_schema(mode="serialization"),
            annotations=self.annotations,
        )

    def failed(self, error: ToolError) -> _Outcome:
        failure = Failure(code=error.code, message=str(error))
        return _Outcome(self.result(status="failed", failure=failure), str(error), is_error=True)


class _Handlers:
    def __init__(self, access: Callable[[Context], Access]) -> None:
        self._access = access

    async def list_tools(self, context: Context, params: PaginatedRequestParams | None) -> ListToolsResult:
        offered = self._access(context).tools.offered
        return ListToolsResult(tools=[offer.listed(name) for name, offer in _OFFERS.items() if name in offered])

    async def call_tool(self, context: Context, params: CallToolRequestParams) -> CallToolResult:
        access = self._access(context)
        offer = {name: each for name, each in _OFFERS.items() if name in access.tools.offered}.get(params.name)  # type: ignore[call-overload]
        if offer is None:
            raise MCPError(INVALID_PARAMS, "there is no tool of that name")
        try:
            with as_tool_errors():
                outcome = await offer.call(access, _parsed(offer.arguments, params.arguments or {}))
        except ToolError as error:
            outcome = offer.failed(error)
        return CallToolResult(
            content=[TextContent(text=outcome.text), *outcome.attached],
            structured_content=outcome.result.model_dump(mode="json"),
            is_error=outcome.is_error,
        )

    async def list_resources(self, context: Context, params: PaginatedRequestParams | None) -> ListResourcesResult:
        return ListResourcesResult(
            resources=[
                Resource(uri=POLICY_URI, name="policy", description="the thresholds in force", mime_type=_JSON),
                Resource(
                    uri=CONCEPTS_URI, name="concepts", description="what prompts are screened for", mime_type=_JSON
                ),
            ]
        )

    async def read_resource(self, context: Context, params: ReadResourceRequestParams) -> ReadResourceResult:
        tools = self._access(context).tools
        try:
            if params.uri == POLICY_URI:
                content: object = (await tools.policy()).model_dump(mode="json")
            elif params.uri == CONCEPTS_URI:
                content = [concept.model_dump(mode="json") for concept in await tools.concepts()]
            else:
                raise MCPError(INVALID_PARAMS, "there is no resource of that URI")
        except ToolError as error:
            raise MCPError(INTERNAL_ERROR, str(error), {"code": error.code}) from None
        text = json.dumps(content, ensure_ascii=False)
        return ReadResourceResult(contents=[TextResourceContents(uri=params.uri, text=text, mime_type=_JSON)])


async def _screen(access: Access, given: ScreenArguments) -> _Outcome:
    verdict = await access.tools.screen(given.prompt, nearest=given.nearest, words=given.words)
    text = f"{verdict.decision}: score {verdict.score:.2f}, threshold {verdict.threshold:.2f}, {verdict.concept!r}"
    return _Outcome(ScreenResult(status="screened", verdict=verdict), text)


async def _generate(access: Access, given: GenerateArguments) -> _Outcome:
    recipients = [PublicKey.from_line(line) for line in given.public_keys]
    try:
        image = await access.tools.generate(given.prompt, recipients, steps=given.steps)
    except BlockedError as blocked:
        failure = Failure(code=blocked.code, message=str(blocked))
        result = GenerateResult(status="blocked", verdict=blocked.verdict, failure=failure)
        return _Outcome(result, f"{blocked}; nothing was drawn", is_error=True)
    sealed, attached = await _handed_over(access, image.content, given.file_name, ".png.sealed")
    result = GenerateResult(
        status="sealed",
        image=sealed,
        personal_data=None if image.personal_data is None else dict(image.personal_data),
        attributes=image.attributes,
    )
    return _Outcome(result, f"sealed, {sealed.bytes:,} bytes: {sealed.file_name or sealed.uri}", (attached,))


async def _classify(access: Access, given: ClassifyArguments) -> _Outcome:
    query = await _message(access, given.query_file, given.query)
    if query is None:
        raise ToolError("invalid_arguments", "query: missing")
    keys = await _message(access, given.keys_file, given.keys)
    answer = await access.tools.classify(query, keys)
    sealed, attached = await _handed_over(access, answer, given.file_name, ".answer")
    result = ClassifyResult(status="classified", answer=sealed)
    return _Outcome(result, f"the encrypted answer: {sealed.file_name or sealed.uri}", (attached,))


async def _message(access: Access, name: str | None, encoded: str | None) -> bytes | None:
    """A message that was given as a file's name or in base64; None if it was not given."""
    if name is not None:
        if access.inputs is None:
            raise ToolError("invalid_file", "no files are read here; give the message in base64")
        return await run_sync(access.inputs.read, name, MOST_CIPHERTEXT_BYTES)
    if encoded is None:
        return None
    try:
        return base64.b64decode(encoded, validate=True)
    except ValueError:
        raise ToolError("invalid_arguments", "a message isn't base64") from None


async def _handed_over(
    access: Access, content: bytes, name: str | None, suffix: str
) -> tuple[Sealed, EmbeddedResource | ResourceLink]:
    """What came out as a file of the output folder, or embedded where there is none."""
    digest = hashlib.sha256(content).hexdigest()
    if access.outputs is None:
        if name is not None:
            raise ToolError("invalid_file", "no files are written here; leave file_name out")
        uri = f"latentguard://results/{digest[:32]}{suffix}"
        blob = BlobResourceContents(uri=uri, blob=base64.b64encode(content).decode(), mime_type=_BINARY)
        return Sealed(uri=uri, file_name=None, bytes=len(content), sha256=digest), EmbeddedResource(resource=blob)
    name = await run_sync(access.outputs.write, content, name, suffix)
    uri = (access.outputs.path / name).as_uri()
    link = ResourceLink(uri=uri, name=name, size=len(content), mime_type=_BINARY)
    return Sealed(uri=uri, file_name=name, bytes=len(content), sha256=digest), link


def _parsed(kind: type[BaseModel], given: Mapping[str, Any]) -> Any:
    """The arguments; ToolError that names the fields and never quotes a value, since it may be a prompt."""
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        wrong = [
            f"{'.'.join(str(part) for part in each['loc'])[:60] or 'arguments'}: {each['msg'][:120]}"
            for each in error.errors(include_input=False, include_url=False, include_context=False)[:5]
        ]
        raise ToolError("invalid_arguments", "; ".join(wrong)) from None


_JSON = "application/json"
_BINARY = "application/octet-stream"

_OFFERS: Mapping[ToolName, _Offer] = {
    "screen_prompt": _Offer(
        "Screen a prompt",
        "Says whether a text-to-image prompt comes too near a blacklisted concept, with score, concept and reasons. "
        "Sees the plain prompt. Draws nothing.",
        ScreenArguments,
        ScreenResult,
        ToolAnnotations(read_only_hint=True, idempotent_hint=True, destructive_hint=False, open_world_hint=False),
        _screen,
    ),
    "generate_private_image": _Offer(
        "Draw an image that only its owner can open",
        "Draws a prompt and seals the picture to public keys: nobody without the private key can see it, this server's "
        "caller included. The prompt is screened first, and nothing is drawn if it is blocked; personal data is taken "
        "out of it, and the persons in it get random sensitive attributes. Sees the plain prompt and public keys.",
        GenerateArguments,
        GenerateResult,
        ToolAnnotations(read_only_hint=False, idempotent_hint=False, destructive_hint=False, open_world_hint=False),
        _generate,
    ),
    "classify_encrypted_image": _Offer(
        "Classify an encrypted image",
        "Classifies an image that stays encrypted (CKKS): takes a query as `python -m privacy.encrypted_inference "
        "encrypt` writes it, and gives an encrypted answer that only that client can decrypt. The client's evaluation "
        "keys are needed at its first call. Sees ciphertexts and evaluation keys, neither image nor label.",
        ClassifyArguments,
        ClassifyResult,
        ToolAnnotations(read_only_hint=False, idempotent_hint=True, destructive_hint=False, open_world_hint=False),
        _classify,
    ),
}
