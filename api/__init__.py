"""HTTP API: an endpoint parses the request, calls the engine, and renders the answer."""
