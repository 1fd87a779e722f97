"""Vendors whose calls and replies are OpenAI's but for the row of their profile (`openai_profiles.py`).

Oddities: `shuffle` (the items in another order), `no_index`, `no_usage`, `error_in_success` (OpenRouter: a 200 with an
error in it), `null_numbers` (llama.cpp: a NaN as null).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pybase64

from models.embedding import Matrix
from providers.base import UpstreamReply, UpstreamRequest
from providers.fake.formats.format import FakeCall
from providers.fake.formats.json_format import JsonFormat

_FIRST_NUMBERS = 8


class OpenAIShapedFormat(JsonFormat):
    """`data[]` with an embedding and an index each, and a usage."""

    def read(self, request: UpstreamRequest, path: str) -> FakeCall | UpstreamReply:
        """As any vendor; or a gateway's error with a status of success."""
        call = super().read(request, path)
        if isinstance(call, FakeCall) and "error_in_success" in self.oddities:
            failed = self.refuse(self.profile.errors.failed)
            return UpstreamReply(200, failed.headers, failed.body)
        return call

    def body(
        self, call: FakeCall, rows: Matrix, indexes: Sequence[int | None], tokens: Sequence[int] | None
    ) -> tuple[object, dict[str, str]]:
        """The list, in the encoding that was asked for."""
        is_base64 = call.encoding == "base64"
        data: list[dict[str, Any]] = []
        for row, index in zip(rows, indexes, strict=True):
            vector: object = pybase64.b64encode_as_string(row.data) if is_base64 else row
            if "null_numbers" in self.oddities and not is_base64:
                vector = [*row[:-1].tolist(), None]
            item: dict[str, Any] = {"object": "embedding", "embedding": vector}
            data.append(item if index is None else {**item, "index": index})
        document: dict[str, Any] = {"object": "list", "data": data, "model": call.model}
        if tokens is not None and (usage := self.usage(call, sum(tokens))) is not None:
            document["usage"] = usage
        return document, {}

    def usage(self, call: FakeCall, tokens: int) -> dict[str, Any] | None:
        """What the vendor counts, where it counts."""
        match self.profile.usage:
            case "none":
                return None
            case "total":
                return {"total_tokens": tokens}
            case "zero":
                return {"prompt_tokens": 0, "total_tokens": 0}
            case "characters":
                characters = sum(len(item) for item in call.inputs)
                return {"prompt_tokens": characters, "total_tokens": characters}
            case "mistral":
                return {"prompt_tokens": tokens, "completion_tokens": 0, "total_tokens": tokens}
            case "cost":
                return {"prompt_tokens": tokens, "total_tokens": tokens, "cost": tokens * 2e-8}
        return {"prompt_tokens": tokens, "total_tokens": tokens}
