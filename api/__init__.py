"""The HTTP edge: an endpoint parses, calls one function of the engine, and renders."""
