"""The fake upstream as a process of its own: `python -m cli.fake_upstream --port 9001`, then base_url …:9001/v1.

It logs what a real provider would have billed: each charge goes to an append-only log before the answer
goes out, also when the caller has hung up meanwhile. Beside the paths of the vendor (OpenAI's /v1/embeddings, or those
of --kind) it serves /__stats (GET), /__script (GET, PUT) and /healthz.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
from pathlib import Path

import uvloop

from cli.fake_upstream.server import Connection, FakeServer, HeaderConnection
from engine.process.allocator_tuning import keep_large_buffers
from providers.fake import FakeScript, FakeUpstream
from providers.fake.formats import FAKE_KINDS, FakeFormat, fake_format


def serve(
    host: str,
    port: int,
    *,
    script_path: Path | None = None,
    latency_ms: float = 0.0,
    log_path: Path | None = None,
    log_inputs: bool = False,
    width: int = 1536,
    models: dict[str, int] | None = None,
    api_key: str | None = None,
    names_offending_input: bool = True,
    wire: FakeFormat | None = None,
    space: str | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT; says its base URL on standard output when it listens (port 0: any free one)."""
    upstream = FakeUpstream(
        None,
        width,
        models=models,
        api_key=api_key,
        latency_ms=latency_ms,
        names_offending_input=names_offending_input,
        wire_format=wire,
        space=space,
    )
    server = FakeServer(upstream, log_path, log_inputs=log_inputs)
    if script_path is not None:
        server.script_text = script_path.read_bytes()
        upstream.script = FakeScript.parse_text(server.script_text.decode())
    keep_large_buffers()
    uvloop.run(_serve(host, port, server))


async def _serve(host: str, port: int, server: FakeServer) -> None:
    loop = asyncio.get_running_loop()
    protocol = Connection if server.upstream.api_key is None else HeaderConnection
    listener = await loop.create_server(lambda: protocol(server), host, port, backlog=1024)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    base_path = server.upstream.wire_format.base_path
    print(f"listening on http://{host}:{listener.sockets[0].getsockname()[1]}{base_path}", flush=True)
    await stop.wait()
    listener.close()


def main() -> None:
    """Parse the command line and serve."""
    parser = argparse.ArgumentParser(prog="python -m cli.fake_upstream", description="A fake OpenAI embeddings server.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="default: any free one, printed")
    parser.add_argument("--width", type=int, default=1536, help="width of models not named by --model")
    parser.add_argument("--model", action="append", metavar="NAME:WIDTH", help="serve only the models so named")
    parser.add_argument("--latency-ms", type=float, default=0.0)
    parser.add_argument("--script", type=Path, metavar="FILE", help="JSON or TOML rules: see providers/fake/script.py")
    parser.add_argument("--log", type=Path, metavar="FILE", help="append one line of JSON per billed call")
    parser.add_argument("--log-inputs", action="store_true", help="with a hash of every input in each line")
    parser.add_argument("--api-key", help="demand this bearer token")
    parser.add_argument("--anonymous-errors", action="store_true", help="do not name the input that is too long")
    parser.add_argument("--kind", choices=FAKE_KINDS, default="openai", help="provider whose wire format it speaks")
    parser.add_argument("--oddity", action="append", help="what this vendor does only sometimes")
    parser.add_argument("--space", metavar="NAME", help="vectors depend on NAME in place of the model's name")
    options = parser.parse_args()
    pairs = [name.rpartition(":") for name in options.model or ()]
    serve(
        options.host,
        options.port,
        script_path=options.script,
        latency_ms=options.latency_ms,
        log_path=options.log,
        log_inputs=options.log_inputs,
        width=options.width,
        models={name: int(width) for name, _, width in pairs} or None,
        api_key=options.api_key,
        names_offending_input=not options.anonymous_errors,
        # OpenAI's own format is made where the option of its messages is.
        wire=None if options.kind == "openai" else fake_format(options.kind, frozenset(options.oddity or ())),
        space=options.space,
    )
