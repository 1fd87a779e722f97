"""Hostile bodies: what is large, deep, compressed, blank or absurd."""

from __future__ import annotations

import asyncio
import gzip
import zlib
from functools import cache

from tests.influence.attack import GZIP, JOBS, SYNC, Attack

MB = 1_000_000


async def giant_tokens(attack: Attack) -> None:
    body = attack.body(["a" * MB, "=" * MB, " " * MB])
    await attack.crowd(8, lambda: attack.post(SYNC, body))


async def giant_tokens_cut(attack: Attack) -> None:
    """With truncate, the tokenizer must read them."""
    body = attack.body(["a" * MB, "=" * MB, " " * MB], truncate="end")
    await attack.crowd(8, lambda: attack.post(SYNC, body))


async def giant_tokens_in_jobs(attack: Attack) -> None:
    body = b"\n".join([b'"' + b"a" * MB + b'"'] * 3)
    await attack.crowd(4, lambda: attack.upload(body))


async def blank_lines(attack: Attack) -> None:
    body = b'"a"\n' + b"\n" * MB + b'"b"\n'
    await attack.crowd(4, lambda: attack.upload(body))


async def refused_lines(attack: Attack) -> None:
    """Lines refused for two reasons in turn, of which no run can be made."""
    body = b'"a"\n' + b'{\n""\n' * 50_000
    await attack.crowd(4, lambda: attack.upload(body))


async def empty_texts(attack: Attack) -> None:
    body = b'{"model":"%b","input":["a",%b"b"]}' % (attack.model.encode(), b'"",' * 100_000)
    await attack.crowd(4, lambda: attack.post(JOBS, body))


@cache
def zeros(count: int) -> bytes:
    return gzip.compress(bytes(count))


async def ratio_bombs(attack: Attack) -> None:
    body = zeros(200 * MB)

    async def both() -> None:
        await attack.upload(body, GZIP)
        await attack.post(SYNC, body, GZIP)

    await attack.crowd(8, both)


async def bombs_below_the_ratio(attack: Attack) -> None:
    """Bodies that may grow to the limit, and are nothing then."""
    body = zeros(16 * MB)
    await attack.crowd(8, lambda: attack.post(SYNC, body, GZIP))


async def unfinished_gzip(attack: Attack) -> None:
    """Forty bodies that are inflated, and whose end never comes."""
    packer = zlib.compressobj(6, zlib.DEFLATED, 31)
    start = packer.compress(b'{"model":"m","input":"' + b"a" * 15 * MB) + packer.flush(zlib.Z_SYNC_FLUSH)

    async def one() -> None:
        async with attack.connection() as (reader, writer):
            writer.write(attack.head("POST", SYNC, {"content-type": "application/json"} | GZIP, len(start) + 100))
            writer.write(start)
            status = int((await reader.readuntil(b"\r\n")).split()[1])
            attack.statuses[status] += 1

    await attack.crowd(40, one)


async def deep_nesting(attack: Attack) -> None:
    model = attack.model.encode()
    bodies = [
        b'{"model":"%b","input":%b%b}' % (model, opening * 200_000, closing * 200_000)
        for opening, closing in ((b"[", b"]"), (b'{"a":', b"}"))
    ]
    bodies.append(b'{"model":"%b","input":"a","providerOptions":%b1%b}' % (model, b'{"a":' * 100_000, b"}" * 100_000))

    async def each() -> None:
        for body in bodies:
            await attack.post(SYNC, body)
            await attack.post(JOBS, body)

    await attack.crowd(4, each)


async def absurd_token_ids(attack: Attack) -> None:
    bodies = [
        attack.body([[2**31, -1, 0]]),
        attack.body([[1] * 2_000] * 500),
        b'{"model":"%b","input":[[%b]]}' % (attack.model.encode(), b"9" * 400_000),
        b'{"model":"%b","input":[%b[1]]}' % (attack.model.encode(), b"[1]," * 300_000),
        b'{"model":"%b","input":[[1e400,0.5,-0,%b]]}' % (attack.model.encode(), b"1e999," * 50_000 + b"1"),
    ]

    async def each() -> None:
        for body in bodies:
            await attack.post(SYNC, body)
            await attack.post(JOBS, body)

    await attack.crowd(4, each)


async def full_calls(attack: Attack) -> None:
    """As many inputs as a call may have, in as many calls at once as a key may have."""

    async def each() -> None:
        await attack.post(SYNC, attack.body([attack.fresh() for _ in range(2_048)]))

    await attack.crowd(100, each)


async def full_calls_as_base64(attack: Attack) -> None:
    async def each() -> None:
        await attack.post(SYNC, attack.body([attack.fresh() for _ in range(2_048)], encoding_format="base64"))

    await attack.crowd(30, each)


async def dry_runs(attack: Attack) -> None:
    """Estimates of large corpora, streamed and as JSON: they read all, and cost their caller nothing."""
    texts = [f"{number} the quick brown fox jumps over the lazy dog" * 3 for number in range(20_000)]
    lines = b"\n".join(b'"%b"' % text.encode() for text in texts)
    body = attack.body(texts, dry_run=True)

    async def each() -> None:
        await asyncio.gather(attack.upload(lines, query="&dry_run=true"), attack.post(JOBS, body))

    await attack.crowd(3, each)


async def gzip_uploads(attack: Attack) -> None:
    body = gzip.compress(b"\n".join(b'{"id":%d,"text":"text %d"}' % (number, number) for number in range(20_000)), 1)
    await attack.crowd(4, lambda: attack.upload(body, GZIP, query="&dry_run=true"))


async def large_uploads(attack: Attack) -> None:
    """Real corpora, one after another: parsed, stored and embedded."""

    async def each() -> None:
        start = attack.fresh("corpus")
        lines = b"\n".join(b'"%b %d"' % (start.encode(), number) for number in range(10_000))
        await attack.upload(lines)

    await attack.crowd(2, each)
