"""Real objects in place of the made-up ids and values of openai-python's own tests.

Those tests were written for a mock server that takes anything: `file_id`, `upload_abc123`, a URL `https://`, a limit
of 0. Each request that names one of them is sent on with the id of an object made for it, and a value that is legal.
What comes back is not touched.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any

import aiohttp
import orjson

LINE = (
    b'{"custom_id":"a","method":"POST","url":"/v1/embeddings","body":{"model":"text-embedding-3-small","input":"a"}}\n'
)
PART = b"Example data"


class Placeholders:
    """Makes the objects through `session`. `api`: URL up to /v1; `headers`: with the key; `hook`: a webhook's URL."""

    def __init__(self, session: aiohttp.ClientSession, api: str, headers: dict[str, str], hook: str) -> None:
        self._session, self._api, self._headers, self._hook = session, api, headers, hook

    async def replace(self, method: str, path: str, body: bytes) -> tuple[str, bytes]:
        """The path (from /v1 on, with its query) and the body to send."""
        part_ids: list[str] = []
        if "/files/file_id" in path:
            path = path.replace("file_id", await self._file())
        elif "/batches/batch_id" in path:
            batch = {"input_file_id": await self._file(), "endpoint": "/v1/embeddings", "completion_window": "24h"}
            path = path.replace("batch_id", await self._create("batches", batch))
        elif "/uploads/upload_abc123" in path:
            upload_id = await self._upload()
            if path.endswith("/complete"):
                part_ids.append(await self._part(upload_id))
            path = path.replace("upload_abc123", upload_id)
        elif "/webhook_endpoints/whe_123" in path:
            path = path.replace("whe_123", await self._endpoint())
        path = re.sub(r"[?&](limit=0|after=after|after=whe_123|purpose=purpose)(?=&|$)", "", path)
        if "?" not in path:
            path = path.replace("&", "?", 1)
        return path, self._body(method, path, body, part_ids)

    def _body(self, method: str, path: str, body: bytes, part_ids: list[str]) -> bytes:
        if method != "POST" or not body.startswith(b"{"):
            return body
        fields: dict[str, Any] = orjson.loads(body)
        legal: dict[str, Any] = {"part_ids": part_ids, "md5": hashlib.md5(PART, usedforsecurity=False).hexdigest()}
        legal |= {"endpoint": "/v1/embeddings", "url": self._hook, "bytes": len(PART)}
        if path.endswith("/v1/embeddings"):
            legal.pop("url")
        return orjson.dumps({name: legal.get(name, value) for name, value in fields.items()})

    async def _file(self) -> str:
        form = aiohttp.FormData()
        form.add_field("purpose", "batch")
        form.add_field("file", LINE, filename="a.jsonl")
        return await self._post("files", data=form)

    async def _upload(self) -> str:
        fields = {"bytes": len(PART), "filename": "a.txt", "mime_type": "text/plain", "purpose": "user_data"}
        return await self._create("uploads", fields)

    async def _part(self, upload_id: str) -> str:
        form = aiohttp.FormData()
        form.add_field("data", PART, filename="part")
        return await self._post(f"uploads/{upload_id}/parts", data=form)

    async def _endpoint(self) -> str:
        fields = {"name": "hook", "url": self._hook, "event_types": ["batch.completed"]}
        return await self._create("webhook_endpoints", fields)

    async def _create(self, path: str, fields: dict[str, Any]) -> str:
        return await self._post(path, json=fields)

    async def _post(self, path: str, **content: Any) -> str:
        async with self._session.post(f"{self._api}/{path}", headers=self._headers, **content) as reply:
            document = await reply.json()
            if reply.status != 200:
                raise AssertionError(f"POST {path}: {document}")
            return str(document["id"])
