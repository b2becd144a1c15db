"""Guarded pipelines: what happens to a call, from its arguments to its images."""

from __future__ import annotations

import functools
import inspect
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import DiffusionPipeline, ModularPipeline
from diffusers.modular_pipelines import PipelineState
from diffusers.utils.torch_utils import unwrap_module

from latentguard.encoders.huggingface import HuggingFaceEncoder
from latentguard.errors import PipelineError, PromptBlocked
from latentguard.integrations.diffusers import outputs
from latentguard.integrations.diffusers.fit import fitting_encoder
from latentguard.integrations.diffusers.hooks import GateHook, StatesHook, attach, detach, gate_open, hook_of
from latentguard.integrations.diffusers.inputs import (
    EMBEDDINGS,
    NEGATIVE_EMBEDDINGS,
    NEGATIVE_TEXTS,
    TEXTS,
    check_screenable,
    check_understood,
    encoded_names,
    is_negative,
    rows_of,
    with_rows_replaced,
)
from latentguard.integrations.diffusers.screening import Screening
from latentguard.integrations.diffusers.settings import Settings
from latentguard.verdict import Verdict

_GUARDING = "_latentguard"
_DENOISERS = ("unet", "transformer", "transformer_2", "prior")
_Verdicts = list[Verdict | None]


class _Blocked(Exception):
    """Unwinds a call in which a prompt was blocked; never leaves this module."""

    def __init__(self, verdicts: _Verdicts) -> None:
        super().__init__("blocked")
        self.verdicts = verdicts


class _Call:
    """One call of a guarded pipeline, in one thread."""

    def __init__(self, pipe: Any, arguments: Mapping[str, Any]) -> None:
        self.pipe, self.arguments = pipe, arguments
        self.verdicts: _Verdicts | None = None

    def decide(self, verdicts: _Verdicts) -> None:
        """Open the gate to the denoiser, or unwind the call."""
        if any(verdict is not None and verdict.blocked for verdict in verdicts):
            raise _Blocked(verdicts)
        self.verdicts = verdicts
        gate_open.set(True)


_current: ContextVar[_Call | None] = ContextVar("latentguard_call", default=None)


@contextmanager
def _under_way(call: _Call) -> Iterator[None]:
    """While a call runs: the gate is closed until its prompts are screened, and is afterwards as it was before."""
    tokens = _current.set(call), gate_open.set(False)
    try:
        yield
    finally:
        _current.reset(tokens[0])
        gate_open.reset(tokens[1])
        # The end of a call takes offloading off and puts it on again, and may have dropped the hooks with it.
        _refresh(call.pipe)


# --- putting a guard on and taking it off


@dataclass(eq=False)
class _Guarding:
    """What a guarded pipeline carries; nothing of it belongs to a call.

    ``fitting`` is the guard's encoder if it fits ``text_encoder``; ``hooked`` are the models that have our hooks.
    """

    settings: Settings
    text_encoder: weakref.ref[Any] | None = None
    fitting: HuggingFaceEncoder | None = None
    hooked: weakref.WeakSet[Any] = field(default_factory=weakref.WeakSet)


def _guarding(pipe: Any) -> _Guarding:
    found: _Guarding = vars(pipe)[_GUARDING]
    return found


def kind_of(pipe: Any) -> type:
    """The class of a pipeline, guarded or not."""
    kind = type(pipe)
    return getattr(kind, "_latentguard_of", kind)


def is_guarded(pipe: Any) -> bool:
    """Whether a guard is on a pipeline."""
    return hasattr(type(pipe), "_latentguard_of")


def put_on(pipe: Any, settings: Settings) -> None:
    """Guard a pipeline in place; PipelineError, naming its class, if that can't be done."""
    kind = kind_of(pipe)
    check_understood(pipe, kind)
    if not issubclass(kind, ModularPipeline):
        outputs.output_class(kind)
        if not _denoisers(pipe):
            raise PipelineError(f"{kind.__name__}: has no denoiser to guard")
    hooked = _guarding(pipe).hooked if is_guarded(pipe) else weakref.WeakSet()
    vars(pipe)[_GUARDING] = _Guarding(settings, hooked=hooked)
    _set_class(pipe, _guarded_class(kind))
    _refresh(pipe)
    _guarded.add(pipe)
    _Descent.watch()


def take_off(pipe: Any) -> None:
    """Take the guard off a pipeline; nothing happens if there is none."""
    if not is_guarded(pipe):
        return
    for module in list(_guarding(pipe).hooked):
        _unhook(module, pipe)
    _set_class(pipe, kind_of(pipe))
    del vars(pipe)[_GUARDING]
    _guarded.discard(pipe)
    _Descent.unwatch()


def _unhook(module: Any, pipe: Any) -> None:
    for hook in (GateHook, StatesHook):
        detach(module, hook, pipe)
    _guarding(pipe).hooked.discard(module)


def _denoisers(pipe: Any) -> list[torch.nn.Module]:
    found = (getattr(pipe, name, None) for name in _DENOISERS)
    return [module for module in found if isinstance(module, torch.nn.Module)]


def _refresh(pipe: Any) -> Settings:
    """See that the hooks are on the models that the pipeline has now, and on no others; its settings."""
    guarding = _guarding(pipe)
    settings = guarding.settings
    text_encoder = getattr(pipe, "text_encoder", None)
    if guarding.text_encoder is None or guarding.text_encoder() is not text_encoder:
        fits = text_encoder is not None
        guarding.fitting = fitting_encoder(settings.guard.encoder, text_encoder) if fits else None
        guarding.text_encoder = weakref.ref(text_encoder) if fits else None
    wanted: dict[Any, type[GateHook] | type[StatesHook]] = {unwrap_module(m): GateHook for m in _denoisers(pipe)}
    if guarding.fitting is not None:
        wanted[unwrap_module(text_encoder)] = StatesHook
    for module in set(guarding.hooked) - set(wanted):
        _unhook(module, pipe)
    for module, kind in wanted.items():
        hook = attach(module, kind, pipe)
        if isinstance(hook, GateHook):
            hook.settings, hook.lenient = settings, settings.allow_unscreened
        guarding.hooked.add(module)
    return settings


@functools.cache
def _guarded_class(kind: type) -> type:
    """A subclass that differs from a pipeline's class in what a call does, and in nothing that shows."""
    of: Any = kind
    call = of.__call__
    modular = issubclass(kind, ModularPipeline)

    @functools.wraps(call)
    def guarded_call(self: Any, *args: Any, **kwargs: Any) -> Any:
        arguments, extras = _bound(call, self, args, kwargs)
        return (_run_modular if modular else _run)(self, call, arguments, extras)

    namespace: dict[str, Any] = {
        "__call__": guarded_call,
        "__module__": kind.__module__,
        "__qualname__": kind.__qualname__,
        "__doc__": kind.__doc__,
        "__class__": property(lambda self: kind),
        "_latentguard_of": kind,
    }
    if not modular:
        encode = of.encode_prompt

        @functools.wraps(encode)
        def guarded_encode(self: Any, *args: Any, **kwargs: Any) -> Any:
            arguments, extras = _bound(encode, self, args, kwargs)
            return _encode(self, encode, arguments, extras)

        namespace["encode_prompt"] = guarded_encode
    # What these make is a new pipeline, which is guarded if it has a guarded one's components.
    for name in ("from_pipe", "from_pretrained"):
        if hasattr(kind, name):
            namespace[name] = _class_method(kind, name)
    return type(kind.__name__, (kind,), namespace)


def _class_method(kind: type, name: str) -> Any:
    return classmethod(lambda cls, *args, **kwargs: getattr(kind, name)(*args, **kwargs))


def _set_class(pipe: Any, kind: type) -> None:
    # Not by assignment: guarded classes show their base class as `__class__`.
    object.__dict__["__class__"].__set__(pipe, kind)


def _bound(
    function: Any, pipe: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arguments of a call by name, and those that the function takes by ** alone."""
    signature = inspect.signature(function)
    arguments = dict(signature.bind(pipe, *args, **kwargs).arguments)
    arguments.pop("self", None)
    extras: dict[str, Any] = {}
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            extras = arguments.pop(name, {})
    return arguments, extras


# --- pipelines made from guarded ones

_guarded: weakref.WeakSet[Any] = weakref.WeakSet()


class _Descent:
    """Guards pipelines that are made of a guarded one's models, as `from_pipe` does.

    diffusers has no hook for it: while any pipeline is guarded, `DiffusionPipeline.register_modules`, through which
    every new pipeline gets its models, looks for a gate on them.
    """

    _original: Callable[..., None] | None = None
    _lock = threading.Lock()

    @classmethod
    def watch(cls) -> None:
        """Begin to look at new pipelines, if that has not begun."""
        with cls._lock:
            if cls._original is not None:
                return
            original = cls._original = DiffusionPipeline.register_modules

            @functools.wraps(original)
            def register_modules(self: Any, **modules: Any) -> None:
                original(self, **modules)
                for name in _DENOISERS:
                    gate = hook_of(modules[name], GateHook) if modules.get(name) is not None else None
                    if gate is not None and gate.users and not is_guarded(self):
                        put_on(self, gate.settings)

            DiffusionPipeline.register_modules = register_modules

    @classmethod
    def unwatch(cls) -> None:
        """Stop it when no guarded pipeline is left."""
        with cls._lock:
            if cls._original is not None and not _guarded:
                DiffusionPipeline.register_modules = cls._original
                cls._original = None


# --- a call


def _run(pipe: Any, call: Any, arguments: dict[str, Any], extras: Mapping[str, Any]) -> Any:
    """A guarded pipeline's call."""
    settings = _refresh(pipe)
    if not settings.allow_unscreened:
        check_screenable(arguments, extras)
    outputs.check_image_check(settings, arguments)
    generators = _states_of_generators(arguments.get("generator"))

    def attempt(given: Mapping[str, Any]) -> tuple[Any, _Verdicts]:
        made = _Call(pipe, given)
        with _under_way(made):
            return call(pipe, **given, **extras), made.verdicts or []

    try:
        output, verdicts = attempt(arguments)
        blanked: set[int] = set()
    except _Blocked as blocked:
        verdicts = blocked.verdicts
        _after_a_block(pipe, generators)
        replaced = _replaced(settings, verdicts, arguments)
        if settings.on_block == "blank" and len(replaced) == len(verdicts):
            return outputs.all_blank(pipe, kind_of(pipe), arguments, verdicts)
        try:
            output, _ = attempt(with_rows_replaced(arguments, replaced, len(verdicts)))
        except _Blocked as again:
            _after_a_block(pipe, generators)
            raise PromptBlocked(again.verdicts) from None
        blanked = set(replaced) if settings.on_block == "blank" else set()
    return outputs.finished(output, verdicts, blanked, settings.image_check)


def _replaced(settings: Settings, verdicts: _Verdicts, arguments: Mapping[str, Any]) -> dict[int, str]:
    """What takes the place of the blocked rows: nothing, to be blanked, or another prompt; PromptBlocked if none may.

    Embeddings have no text that could be replaced.
    """
    blocked = {i: verdict for i, verdict in enumerate(verdicts) if verdict is not None and verdict.blocked}
    has_embeddings = any(arguments.get(name) is not None for name in EMBEDDINGS)
    if settings.on_block == "raise" or (settings.on_block == "replace" and has_embeddings):
        raise PromptBlocked(verdicts) from None
    return {i: "" if settings.on_block == "blank" else settings.replacement_for(v) for i, v in blocked.items()}


def _after_a_block(pipe: Any, generators: Sequence[tuple[torch.Generator, torch.Tensor]]) -> None:
    """Leave the pipeline as a finished call would, and the generators as they were."""
    if hasattr(pipe, "maybe_free_model_hooks"):
        pipe.maybe_free_model_hooks()
        _refresh(pipe)
    for generator, state in generators:
        generator.set_state(state)


def _states_of_generators(given: Any) -> list[tuple[torch.Generator, torch.Tensor]]:
    generators = given if isinstance(given, (list, tuple)) else [given]
    return [(generator, generator.get_state()) for generator in generators if isinstance(generator, torch.Generator)]


def _encode(pipe: Any, encode: Any, arguments: dict[str, Any], extras: Mapping[str, Any]) -> Any:
    """A guarded pipeline's `encode_prompt`: within its call the place where prompts are screened, or on its own."""
    settings = _guarding(pipe).settings
    call = _current.get()
    if call is not None and call.pipe is pipe:
        if call.verdicts is not None and is_negative(arguments, call.arguments):
            return encode(pipe, **arguments, **extras)
        negative = {name: call.arguments.get(name) for name in (*NEGATIVE_TEXTS, *NEGATIVE_EMBEDDINGS)}
        result, verdicts = _screened(
            pipe, settings, {**negative, **arguments}, lambda: encode(pipe, **arguments, **extras)
        )
        call.decide(verdicts)
        return result
    _refresh(pipe)
    try:
        result, _ = _screened(pipe, settings, arguments, lambda: encode(pipe, **arguments, **extras))
    except _Blocked as blocked:
        _after_a_block(pipe, [])
        if settings.on_block != "replace":  # there is no image to blank
            raise PromptBlocked(blocked.verdicts) from None
        replaced = _replaced(settings, blocked.verdicts, arguments)
        arguments = with_rows_replaced(arguments, replaced, len(blocked.verdicts))
        try:
            result, _ = _screened(pipe, settings, arguments, lambda: encode(pipe, **arguments, **extras))
        except _Blocked as again:
            raise PromptBlocked(again.verdicts) from None
    _keep_receipts(pipe, encode, settings, arguments, result)
    return result


def _screened(
    pipe: Any, settings: Settings, arguments: Mapping[str, Any], encode: Callable[[], Any]
) -> tuple[Any, _Verdicts]:
    """What `encode` gives, and the verdicts on what it encodes; raises _Blocked as soon as one blocks."""
    screening = Screening(pipe, settings, _guarding(pipe).fitting, rows_of(arguments))
    screening.begin()
    negative = _negative_verdicts(pipe, settings, arguments)
    if not screening.awaits_states:
        # All is known: the encoders, which may be large, needn't run.
        _raise_if_blocked(_worse(screening.verdicts(), negative))
    with screening.listening():
        result = encode()
    screening.finish()
    verdicts = _worse(screening.verdicts(), negative)
    _raise_if_blocked(verdicts)
    return result, verdicts


def _negative_verdicts(pipe: Any, settings: Settings, arguments: Mapping[str, Any]) -> _Verdicts:
    if not settings.screen_negative:
        return []
    screening = Screening(pipe, settings, _guarding(pipe).fitting, rows_of(arguments, negative=True))
    screening.begin()
    return screening.verdicts()


def _worse(verdicts: _Verdicts, negative: _Verdicts) -> _Verdicts:
    """Row by row the worse verdict; one negative prompt counts for all rows."""
    if not negative:
        return verdicts
    beside = negative * len(verdicts) if len(negative) == 1 else negative
    pairs = zip(verdicts, beside, strict=True)
    return [
        max((v for v in pair if v is not None), key=lambda v: (v.blocked, v.margin), default=None) for pair in pairs
    ]


def _raise_if_blocked(verdicts: _Verdicts) -> None:
    if any(verdict is not None and verdict.blocked for verdict in verdicts):
        raise _Blocked(verdicts)


def _keep_receipts(pipe: Any, encode: Any, settings: Settings, arguments: Mapping[str, Any], result: Any) -> None:
    """Remember which texts the embeddings were made from that are handed out."""
    names = encoded_names(
        list(inspect.signature(kind_of(pipe).__call__).parameters), list(inspect.signature(encode).parameters)
    )
    _remember(settings, arguments, {name: one for name, one in zip(names, result, strict=False) if name is not None})


def _remember(settings: Settings, texts: Mapping[str, Any], embeddings: Mapping[str, Any]) -> None:
    for negative in (False, True) if settings.screen_negative else (False,):
        rows = rows_of({name: texts.get(name) for name in (NEGATIVE_TEXTS if negative else TEXTS)}, negative=negative)
        for name in NEGATIVE_EMBEDDINGS if negative else EMBEDDINGS:
            tensor = embeddings.get(name)
            if isinstance(tensor, torch.Tensor) and rows and len(tensor) % len(rows) == 0:
                settings.receipts.add(tensor, [tuple(row.texts.values()) for row in rows])


# --- a modular pipeline's call


def _run_modular(pipe: Any, call: Any, arguments: dict[str, Any], extras: Mapping[str, Any]) -> Any:
    """A guarded modular pipeline's call. Its blocks encode the prompt, so that screening ends in the text encoder."""
    settings = _refresh(pipe)
    state, wanted = arguments.get("state") or PipelineState(), arguments.get("output")
    inputs = _modular_inputs(pipe, state, extras)
    if not settings.allow_unscreened:
        check_screenable(inputs, {})
    outputs.check_image_check(settings, inputs)
    generators = _states_of_generators(inputs.get("generator"))

    def attempt(given: Mapping[str, Any]) -> tuple[Any, _Verdicts]:
        made = _Call(pipe, given)
        rows = rows_of(given)
        negative = _negative_verdicts(pipe, settings, given)

        def decide() -> None:
            made.decide(_worse(screening.verdicts(), negative))

        fitting = _guarding(pipe).fitting if "prompt" in _input_names(pipe) else None
        screening = Screening(pipe, settings, fitting, rows, decide)
        with _under_way(made):
            screening.begin()
            if rows and not screening.awaits_states:
                decide()
            with screening.listening():
                output = call(pipe, state=_state_with(state, inputs, given), **_extras_with(extras, given))
            return output, made.verdicts or []

    try:
        output, verdicts = attempt(inputs)
        blanked: set[int] = set()
    except _Blocked as blocked:
        verdicts = blocked.verdicts
        _after_a_block(pipe, generators)
        replaced = _replaced(settings, verdicts, inputs)
        if settings.on_block == "blank" and len(replaced) == len(verdicts):
            return _wanted(outputs.all_blank_state(pipe, inputs, verdicts), wanted)
        try:
            output, _ = attempt(with_rows_replaced(inputs, replaced, len(verdicts)))
        except _Blocked as again:
            _after_a_block(pipe, generators)
            raise PromptBlocked(again.verdicts) from None
        blanked = set(replaced) if settings.on_block == "blank" else set()
    if not blanked:
        _remember(settings, {name: output.get(name) for name in (*TEXTS, *NEGATIVE_TEXTS)}, output.values)
    return _wanted(outputs.finished_state(output, verdicts, blanked, settings.image_check), wanted)


def _input_names(pipe: Any) -> set[str]:
    return {parameter.name for parameter in pipe.blocks.inputs}


def _modular_inputs(pipe: Any, state: Any, extras: Mapping[str, Any]) -> dict[str, Any]:
    """All that a modular pipeline's blocks will read: the state's values, overlaid with what the call is given."""
    inputs = {} if state is None else dict(state.values)
    if "prompt" in _input_names(pipe):
        # Left over from an earlier call: the text encoder's block puts new ones in their place.
        for name in (*EMBEDDINGS, *NEGATIVE_EMBEDDINGS):
            inputs.pop(name, None)
    for name, value in extras.items():
        inputs |= value if name == "denoiser_input_fields" else {name: value}
    return inputs


def _state_with(state: PipelineState, inputs: Mapping[str, Any], given: Mapping[str, Any]) -> PipelineState:
    """A state whose values are those of `given` wherever these differ from what was read from it."""
    changed = {name: given[name] for name in state.values if name in inputs and given[name] is not inputs[name]}
    return PipelineState({**state.values, **changed}, dict(state.kwargs_mapping))


def _extras_with(extras: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a modular call with the values of `given`, the fields of its dict of arguments included."""
    return {
        name: {field: given[field] for field in value} if name == "denoiser_input_fields" else given[name]
        for name, value in extras.items()
    }


def _wanted(state: PipelineState, wanted: Any) -> Any:
    return state if wanted is None else state.get(wanted)
