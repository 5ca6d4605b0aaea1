"""Serving: a worker that owns the model, an HTTP API, and the router alone for other engines."""
