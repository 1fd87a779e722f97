"""`python -m api`: the HTTP API."""

from __future__ import annotations

import argparse
import faulthandler
import sys

from api.app import build_app, operations_app, with_edge
from api.http.connection_table import ConnectionTable
from api.http.middleware import RequestContext
from api.http.server import ApiServer
from engine.config.settings import Settings
from engine.observability.telemetry import configure_logging
from engine.process.file_descriptors import raise_descriptor_limit
from engine.runtime import Runtime
from models.errors import EmbedmillError

# The event loop asks for the interpreter's lock each time it wakes up, many times in one request. While a work thread
# parses, it gets the lock after this time; Python's 5 ms would be waited for at each of them.
SWITCH_S = 0.0005


def main() -> None:
    """Parse the command line and serve until a signal."""
    parser = argparse.ArgumentParser(prog="api", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=8080, help="port to listen on")
    options = parser.parse_args()
    try:
        server = create_server(options.host, options.port)
    except EmbedmillError as error:
        sys.exit(f"error: {error.message}")
    sys.setswitchinterval(SWITCH_S)
    server.run()
    sys.exit(0 if server.started else 1)


def create_server(host: str, port: int) -> ApiServer:
    """Everything but the listener. Raises ConfigError."""
    settings = Settings.from_environment()
    configure_logging(settings.log_level, settings.log_format, service="api")
    faulthandler.enable()  # `up` ends an API that hangs with SIGABRT: its log then says where it hung
    table = ConnectionTable(settings, max_descriptors=raise_descriptor_limit())
    runtime = Runtime.open(settings)
    app = build_app(runtime)
    return ApiServer(
        settings,
        with_edge(app),
        host=host,
        port=port,
        lifecycle=app.state.lifecycle,
        table=table,
        ops_app=RequestContext(operations_app(app)) if settings.ops_port else None,
    )


if __name__ == "__main__":
    main()
