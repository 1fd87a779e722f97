"""The wire format of the model that runs inside this process (`kind = "local"`): msgpack in, raw float32 out.

The format is ours, and is the same seam as any other provider's: a request, a reply, nothing else. The model itself is
loaded and run by `engine/upstream/in_process.py`.
"""

from __future__ import annotations

import msgspec
import numpy as np

from models.embedding import Batch, Limits, Route
from models.errors import (
    UpstreamError,
    UpstreamMisconfigured,
    UpstreamOverloaded,
    UpstreamProtocolError,
    UpstreamRejected,
    UpstreamUnavailable,
)
from providers.base import (
    EmbeddingReply,
    Provider,
    UpstreamReply,
    UpstreamRequest,
    max_reply_bytes_of,
    plausible_tokens,
)
from providers.traits import Traits

CONTENT_TYPE = "application/x-embedmill-f32"
WIDTHS = {"wordllama-256": 256}  # by model: all that there are


class LocalRequest(msgspec.Struct):
    """The body of a request to the local model."""

    model: str
    texts: list[str]
    width: int


class LocalProvider(Provider):
    """The wire format of the local model."""

    traits = Traits(
        kind="local",
        title="a small model inside embedmill, on the CPU, without network",
        limits=Limits(
            inputs_per_call=512, tokens_per_input=8192, tokens_per_call=1_000_000, bytes_per_call=32 * 1024 * 1024
        ),
        base_url="inproc://local",
        order="position",
    )

    def request(self, batch: Batch, route: Route) -> UpstreamRequest:
        """The texts as msgpack, to the model in the URL."""
        texts = [text for text in batch.inputs if isinstance(text, str)]
        body = msgspec.msgpack.encode(LocalRequest(route.upstream_model, texts, batch.width))
        return UpstreamRequest(
            "POST", f"{route.account.base_url}/{route.upstream_model}", {}, body, max_reply_bytes_of(batch)
        )

    def parse_reply(self, reply: UpstreamReply, batch: Batch, route: Route | None = None) -> EmbeddingReply:
        """Raw float32 rows. Raises UpstreamProtocolError for a body of another size."""
        count = len(batch.inputs)
        if len(reply.body) != count * batch.width * 4:
            raise UpstreamProtocolError(f"the local model answered {len(reply.body)} bytes for {count} inputs")
        rows = np.frombuffer(reply.body, dtype="<f4").reshape(count, batch.width)
        tokens = reply.headers.get("x-tokens", "")
        reported = plausible_tokens([int(tokens)] if tokens.isdecimal() and len(tokens) < 16 else [], batch)
        return EmbeddingReply(rows, reported.tokens, tokens_doubt=reported.doubt)

    def error_from(self, reply: UpstreamReply) -> UpstreamError:
        """The error by its status; the body is its message."""
        message = reply.body.decode("utf-8", "replace")[:500]
        if reply.status == 404:
            return UpstreamMisconfigured(
                f"local model: {message}",
                status=404,
                advice="correct model in the route to providers.{account}, in the file that API and workers read",
            )
        if reply.status == 400:
            return UpstreamRejected(f"local model: {message}", status=400)
        if reply.status == 503:
            return UpstreamOverloaded(f"local model: {message}", status=503)
        return UpstreamUnavailable(f"local model: {message}", status=reply.status)

    def rate_limits(self, reply: UpstreamReply) -> None:
        """The model in this process has none."""
