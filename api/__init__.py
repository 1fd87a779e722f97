"""The HTTP edge: a route parses, calls one verb of the engine, and renders."""
