"""The HTTP API: routes, schemas, problems, limits, streaming. No rules of its own."""
