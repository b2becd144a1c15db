"""What agents may call: screening, private generation and encrypted classification, here or on a running service.

One interface, `base.Tools`, in two ways: `local.LocalTools` over a guard, a pipeline and a classifier in this process,
and `remote.RemoteTools` over a running service. The MCP server and the agent are written against the interface alone.
"""
