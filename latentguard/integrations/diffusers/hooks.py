"""The two hooks on a pipeline's models, put there and taken away by diffusers' own mechanism (`diffusers.hooks`).

:class:`StatesHook` on the text encoder hands on the states that the pipeline computes anyway. :class:`GateHook` on the
denoiser lets a step pass only inside a guarded call whose prompts have been screened. Both are passive objects without
state of a call: that lives in context variables, so that threads don't meet.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Protocol, TypeVar

import torch
from diffusers.hooks import HookRegistry, ModelHook
from diffusers.utils.torch_utils import unwrap_module
from torch import Tensor

from latentguard.errors import UnscreenedError

NAME = "latentguard"


class Listener(Protocol):
    """Whoever waits for the states of a text encoder."""

    def wants_hidden_states(self) -> bool:
        """Whether the states of layers before the last one are needed."""
        ...

    def hear(self, ids: Tensor, output: Any) -> None:
        """What the text encoder made of token ids [B, L]."""
        ...


listening: ContextVar[Listener | None] = ContextVar("latentguard_listening", default=None)
gate_open: ContextVar[bool] = ContextVar("latentguard_gate_open", default=False)
# Of the text encoder's call that is under way: its ids, and whether the caller asked for the hidden states himself.
_changing = threading.RLock()
_under_way: ContextVar[tuple[Tensor, bool] | None] = ContextVar("latentguard_under_way", default=None)


class _Hook(ModelHook):  # type: ignore[misc]
    """A hook that several pipelines may share, and what is needed to take it away without a trace."""

    def __init__(self) -> None:
        super().__init__()
        self.users: weakref.WeakSet[Any] = weakref.WeakSet()
        self.before: Callable[..., Any] | None = None
        self.installed: Callable[..., Any] | None = None
        self.had_forward = False
        self.had_registry = False


class StatesHook(_Hook):
    """Lets whoever listens read what the text encoder computes; its caller gets what he would get without."""

    def pre_forward(self, module: Any, *args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        listener = listening.get()
        ids = args[0] if args else kwargs.get("input_ids")
        if listener is None or not isinstance(ids, Tensor):
            _under_way.set(None)
            return args, kwargs
        asked = kwargs.get("output_hidden_states")
        if asked is None:
            asked = module.config.output_hidden_states
        _under_way.set((ids, bool(asked)))
        if listener.wants_hidden_states():
            kwargs = {**kwargs, "output_hidden_states": True}
        return args, kwargs

    def post_forward(self, module: torch.nn.Module, output: Any) -> Any:
        listener, call = listening.get(), _under_way.get()
        _under_way.set(None)
        if listener is None or call is None:
            return output
        ids, asked = call
        if hasattr(output, "last_hidden_state"):  # a plain tuple doesn't say what it holds
            listener.hear(ids, output)
        if listener.wants_hidden_states() and not asked:
            return _without_hidden_states(output)
        return output


def _without_hidden_states(output: Any) -> Any:
    if isinstance(output, tuple):
        raise UnscreenedError("the text encoder was called with return_dict=False, so its states can't be told apart")
    return type(output)(**{name: value for name, value in output.items() if name != "hidden_states"})


class GateHook(_Hook):
    """Refuses a denoising step outside a guarded call, or in one whose prompts have not all been screened.

    ``settings`` are the guarded pipeline's, for pipelines made of its components; ``lenient`` lets every step pass.
    """

    def __init__(self) -> None:
        super().__init__()
        self.settings: Any = None
        self.lenient = False

    def pre_forward(self, module: Any, *args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        # Plain enough for torch.compile to trace, also with fullgraph=True; it guards on the variable's value.
        if not self.lenient and not gate_open.get():
            raise UnscreenedError(
                "a guarded denoiser was called outside a guarded pipeline's call, or before its prompts were screened; "
                "guard the pipeline that calls it"
            )
        return args, kwargs


Hook = TypeVar("Hook", bound=_Hook)


def hook_of(module: Any, kind: type[Hook]) -> Hook | None:
    """The hook of that kind on a module, compiled or not; None if there is none."""
    registry = getattr(unwrap_module(module), "_diffusers_hook", None)
    hook = None if registry is None else registry.get_hook(NAME)
    return hook if isinstance(hook, kind) else None


def attach(module: Any, kind: type[Hook], user: Any) -> Hook:
    """Put a hook on a module for one more pipeline; put it back where another library has dropped it."""
    with _changing:
        return _attach(unwrap_module(module), kind, user)


def _attach(module: Any, kind: type[Hook], user: Any) -> Hook:
    hook, had_registry = hook_of(module, kind), hasattr(module, "_diffusers_hook")
    users: weakref.WeakSet[Any] = weakref.WeakSet()
    if hook is not None and not _in_force(module, hook):
        users, had_registry = hook.users, hook.had_registry
        _forget(module, hook)
        hook = None
    if hook is None:
        hook = kind()
        hook.users, hook.had_registry = users, had_registry
        hook.had_forward = "forward" in vars(module)
        hook.before = module.forward
        HookRegistry.check_if_exists_or_initialize(module).register_hook(hook, NAME)
        hook.installed = module.forward
    hook.users.add(user)
    return hook


def detach(module: Any, kind: type[_Hook], user: Any) -> None:
    """Take a hook away for one pipeline, and off the module if it was the last."""
    with _changing:
        _detach(unwrap_module(module), kind, user)


def _detach(module: Any, kind: type[_Hook], user: Any) -> None:
    hook = hook_of(module, kind)
    if hook is None:
        return
    hook.users.discard(user)
    if hook.users:
        return
    outer = _wrapper_around(module.forward, hook.installed)
    if getattr(module, "_old_forward", None) is hook.installed:
        # accelerate's offloading wraps the hook: out of the middle, so that the offloading stays.
        module._old_forward = hook.before
        if outer is not None:
            outer.__wrapped__ = hook.before
        _forget(module, hook)
    elif not _in_force(module, hook):
        _forget(module, hook)
    else:
        module._diffusers_hook.remove_hook(NAME, recurse=False)
    if not hook.had_forward and vars(module).get("forward") == hook.before:
        del module.forward
    if not hook.had_registry and not module._diffusers_hook.hooks:
        del module._diffusers_hook


def _in_force(module: Any, hook: _Hook) -> bool:
    """Whether a call of the module still goes through the hook.

    accelerate puts back the forward that it found when it takes its offloading off, as every call of a pipeline with
    `enable_model_cpu_offload` does, and with it drops hooks that were put on later.
    """
    return module.forward is hook.installed or _wrapper_around(module.forward, hook.installed) is not None


def _wrapper_around(forward: Any, inner: Any) -> Any | None:
    """The function in the chain of `forward` that wraps `inner`; None if none does."""
    while (wrapped := getattr(forward, "__wrapped__", None)) is not None:
        if wrapped is inner:
            return forward
        forward = wrapped
    return None


def _forget(module: Any, hook: _Hook) -> None:
    """Take a hook that no call goes through any more out of the registry, which would otherwise undo the forward."""
    registry = module._diffusers_hook
    place = registry._fn_refs.index(hook.fn_ref)
    del registry._fn_refs[place], registry._hook_order[place], registry.hooks[NAME]
