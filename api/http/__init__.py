"""What every endpoint needs of HTTP: connections, bodies, keys, errors, and the OpenAPI document."""
