"""The MCP server over stdio, for the program that started it."""

from __future__ import annotations

import logging
import sys

from mcp.server.stdio import stdio_server

from latentguard.integrations.mcp.server import Access, mcp_server


async def serve_stdio(access: Access) -> None:
    """Serves until standard input ends. Standard output carries the protocol alone, standard error the log."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    server = mcp_server(lambda _: access)
    try:
        async with stdio_server() as (read, write):
            await server.run(read, write, server.create_initialization_options())
    finally:
        await access.tools.aclose()
