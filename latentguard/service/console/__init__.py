"""The web console: server-rendered pages over the running service."""

from __future__ import annotations

from latentguard.service.console.router import console_router

__all__ = ["console_router"]
