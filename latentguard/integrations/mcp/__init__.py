"""The tools for agents by the Model Context Protocol: over stdio for one user, over HTTP as a part of the service."""
