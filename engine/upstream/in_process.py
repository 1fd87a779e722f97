"""The in-process transport: code in this process answers requests to `inproc://`, beside the event loop.

It has the interface of the HTTP transport: an UpstreamRequest in, an UpstreamReply out, the same errors.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from models.embedding import Account
from models.errors import (
    UpstreamAuthFailed,
    UpstreamError,
    UpstreamMisconfigured,
    UpstreamOverloaded,
    UpstreamRateLimited,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from providers.base import UpstreamReply, UpstreamRequest
from providers.fake import FakeScript, FakeUpstream
from providers.local import WIDTHS, LocalRequest

if TYPE_CHECKING:
    from wordllama.inference import WordLlamaInference

SCHEME = "inproc://"
NOT_INSTALLED = "the built-in local model needs the package wordllama, which is not installed here"
INSTALL_IT = "`pip install wordllama`, or give the model a route to another provider"
# Errors whose advice fits any account.
ADDRESSLESS = (UpstreamAuthFailed, UpstreamOverloaded, UpstreamRateLimited)


def fit_advice(error: UpstreamError, account: Account) -> None:
    """Replace advice about an address or a status page in an error of an account whose model runs in this process."""
    has_fitting = error.advice and "base_url" not in error.advice
    if has_fitting or not account.base_url.startswith(SCHEME) or isinstance(error, ADDRESSLESS):
        return
    if account.kind == "fake":
        error.advice = "see script of providers.{account}, which plays this fault"
    elif isinstance(error, UpstreamTimeout):
        error.advice = "raise timeout_s of providers.{account}, or run fewer workers on this machine"
    else:
        error.advice = "see the log of API and workers, in which this model runs, and restart them"


class InProcessTransport:
    """Answers local and fake requests in threads; one thread runs the model, which is bound by the CPU."""

    def __init__(self, accounts: list[Account]) -> None:
        self._model_thread = ThreadPoolExecutor(1, thread_name_prefix="local-model")
        self._local = LocalModel()
        self._fakes = {
            account.base_url: FakeUpstream(
                FakeScript.parse(account.settings.get("script") or []),
                latency_ms=float(account.settings.get("latency_ms") or 0.0),
            )
            for account in accounts
            if account.kind == "fake" and account.base_url.startswith(SCHEME)
        }

    async def send(self, request: UpstreamRequest, *, timeout_s: float) -> UpstreamReply:
        """Answer the request. Raises UpstreamTimeout when it takes longer than timeout_s."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout_s):
                for base_url, fake in self._fakes.items():
                    if request.url.startswith(base_url):
                        answer = await loop.run_in_executor(None, fake.answer, request, time.time())
                        if answer.delay_s or answer.slow_body_s:
                            await asyncio.sleep(answer.delay_s + answer.slow_body_s)
                        if answer.fault == "hang":
                            await asyncio.Event().wait()
                        if answer.fault is not None:
                            raise UpstreamUnavailable("the model in this process hung up, as its script says")
                        return answer.reply
                return await loop.run_in_executor(self._model_thread, self._local.answer, request)
        except TimeoutError:
            raise UpstreamTimeout(f"the model in this process took longer than {timeout_s:g} s") from None

    def count(self, texts: Sequence[str]) -> list[int]:
        """The tokens of each text by the local model's tokenizer. Blocks for long: not for the event loop."""
        return self._model_thread.submit(self._local.count, texts).result()

    def close(self) -> None:
        """End the model's thread."""
        self._model_thread.shutdown(wait=False, cancel_futures=True)


class LocalModel:
    """wordllama's 256-wide model, whose weights ship in its package. Loaded at the first request."""

    def __init__(self) -> None:
        self._model: WordLlamaInference | None = None

    def answer(self, request: UpstreamRequest) -> UpstreamReply:
        """The reply to a msgpack request: raw float32 rows, or an error status."""
        call = msgspec.msgpack.decode(request.body, type=LocalRequest)
        if call.model not in WIDTHS:
            return UpstreamReply(404, {}, f"there is no model {call.model}; there is {', '.join(WIDTHS)}".encode())
        rows, tokens, empty = self.embed(call.texts)
        if empty is not None:
            return UpstreamReply(400, {}, f"input[{empty}] has nothing in it that the model knows".encode())
        return UpstreamReply(200, {"x-tokens": str(tokens)}, np.ascontiguousarray(rows[:, : call.width]).tobytes())

    def embed(self, texts: list[str]) -> tuple[Any, int, int | None]:
        """Unit rows of 256, the tokens counted, and the position of a text without tokens.

        The package pads a batch to its longest text. Here each text's tokens are summed by themselves, so a vector is
        the same to the bit whatever it shares its batch with.
        """
        model = self._loaded()
        encoded = [item.ids for item in model.tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
        counts = np.fromiter((len(ids) for ids in encoded), dtype=np.int64, count=len(encoded))
        if not counts.all():
            return None, 0, int(np.argmin(counts))
        flat = np.concatenate([np.asarray(ids, dtype=np.int64) for ids in encoded])
        starts = np.concatenate(([0], np.cumsum(counts)[:-1]))
        rows = np.empty((len(texts), model.embedding.shape[1]), dtype=np.float32)
        # In slices, so that the gathered token vectors (1 KB each) stay small whatever the batch holds.
        step = 64
        for first in range(0, len(texts), step):
            last = min(first + step, len(texts))
            low, high = starts[first], starts[last - 1] + counts[last - 1]
            np.add.reduceat(model.embedding[flat[low:high]], starts[first:last] - low, axis=0, out=rows[first:last])
        rows /= counts[:, None].astype(np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        return rows, int(counts.sum()), None

    def count(self, texts: Sequence[str]) -> list[int]:
        """The tokens of each text, as `embed` counts them."""
        encoded = self._loaded().tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [len(item.ids) for item in encoded]

    def _loaded(self) -> WordLlamaInference:
        """The model, read at the first use. Raises UpstreamMisconfigured where its package is not installed."""
        if self._model is None:
            try:
                import wordllama
            except ImportError:
                raise UpstreamMisconfigured(NOT_INSTALLED, advice=INSTALL_IT) from None

            # Both arguments are needed to keep it off the network.
            folder = Path(wordllama.__file__).parent
            self._model = wordllama.WordLlama.load(cache_dir=folder, disable_download=True)
            # Padding would only be cut off again; counts must be of real tokens.
            self._model.tokenizer.no_padding()
        return self._model
