"""The fake provider: OpenAI's wire format, answered by a deterministic, scriptable upstream in process or over HTTP."""

from providers.fake.provider import FakeProvider
from providers.fake.script import FakeScript
from providers.fake.upstream import BilledCall, FakeAnswer, FakeUpstream
from providers.fake.vectors import fake_tokens, fake_vectors, input_hash

__all__ = [
    "BilledCall",
    "FakeAnswer",
    "FakeProvider",
    "FakeScript",
    "FakeUpstream",
    "fake_tokens",
    "fake_vectors",
    "input_hash",
]
