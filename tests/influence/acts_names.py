"""Hostile names and texts: words that an upstream echoes, names like another's, and options that ask too much."""

from __future__ import annotations

import itertools
from typing import Any
from urllib.parse import quote

from tests.influence.attack import JOBS, SYNC, Attack

# What an upstream says about a text of this caller, quoting it: words by which careless gateways know other faults.
PROSE = (
    "Incorrect API key provided: invalid api key",
    "You exceeded your current quota, please check your plan and billing details: insufficient_quota",
    "The model `fake` does not exist: model_not_found",
    "This model's maximum context length is 8192 tokens: context_length_exceeded",
    "Rate limit reached for requests: too many requests, retry after 3600 seconds",
    "This endpoint does not support encoding_format base64",
    "Invalid 'input[0]': maximum input length is 8192 tokens.",
    "Service unavailable: the server is overloaded, connection refused",
    "This model does not support embeddings",
    "API key expired. access denied, permission denied, unauthorized, forbidden",
)
STATUSES = (400, 403, 422, 500)
ODD = (
    "\x00\x01\x1b[31m\r\nx-injected: 1",
    "😀" * 50,
    "../../etc/passwd",
    "%00%2e%2e%2f",
    "'; DROP TABLE jobs; --",
    "${jndi:ldap://x}{{7*7}}",
    "x" * 10_000,
    "\u202egnp.exe\u2028",
    "__proto__",
    "",
    " ",
    "NaN",
)


def mark(status: int, number: int) -> str:
    return f"echo-{status}-{number}-end"


def hostile_script() -> list[dict[str, Any]]:
    """Rules for the fake upstream: each text of `echoed_words` draws an error that quotes it."""
    rules: list[dict[str, Any]] = [
        {
            "when": {"contains": mark(status, number)},
            "do": {"status": status, "code": "invalid_request", "message": f"Cannot embed the text '{words}'"},
        }
        for status in STATUSES
        for number, words in enumerate(PROSE)
    ]
    return [*rules, {"when": {"contains": "slow-"}, "do": {"latency_ms": 2_000}}]


async def echoed_words(attack: Attack) -> None:
    marks = itertools.cycle([mark(status, number) for status in STATUSES for number in range(len(PROSE))])

    async def each() -> None:
        await attack.post(SYNC, attack.body(f"{attack.fresh()} {next(marks)}"))

    await attack.crowd(8, each)


async def echoed_words_in_jobs(attack: Attack) -> None:
    marks = [mark(status, number) for status in STATUSES for number in range(len(PROSE))]

    async def each() -> None:
        await attack.post(JOBS, attack.body([f"{attack.fresh()} {each}" for each in marks[::4]]))

    await attack.crowd(1, each)


async def odd_names(attack: Attack) -> None:
    """Names where names may be: users, metadata, models, ids, keys, queries."""

    async def each() -> None:
        for odd in ODD:
            escaped = quote(odd[:2_000], safe="")
            await attack.post(SYNC, attack.body("a", user=odd))
            await attack.post(SYNC, attack.body("a", model=odd))
            await attack.post(JOBS, attack.body(["a"], metadata={odd[:70]: odd}))
            await attack.post(JOBS, attack.body(["a"], user=odd, dry_run=True))
            await attack.request("GET", f"{JOBS}/{escaped}")
            await attack.request("GET", f"{JOBS}/{escaped}/results")
            await attack.request("GET", f"{JOBS}?status={escaped}&after={escaped}")
            await attack.post(JOBS, attack.body(["a"], dry_run=True), {"idempotency-key": escaped[:250] or "x"})
            await attack.request("GET", f"/v1/models/{escaped}")

    await attack.crowd(4, each)


async def lookalike_models(attack: Attack) -> None:
    model = attack.model
    likes = [
        model.upper(),
        f" {model}",
        f"{model} ",
        f"{model}\u200b",
        f"{model}\x00",
        model.replace("t", "т"),
        f"{model}/",
    ]

    async def each() -> None:
        for like in likes:
            await attack.post(SYNC, attack.body("a", model=like))
            await attack.post(JOBS, attack.body(["a"], model=like))

    await attack.crowd(8, each)


async def the_victims_idempotency_key(attack: Attack) -> None:
    async def each() -> None:
        await attack.post(JOBS, attack.body([attack.fresh()]), {"idempotency-key": attack.victims_key})

    await attack.crowd(4, each)


async def hostile_options(attack: Attack) -> None:
    model = attack.model
    options: list[dict[str, Any]] = [
        {"gateway": {"models": [model] * 30_000}},
        {"gateway": {"order": ["x"] * 30_000}},
        {"up": {"base_url": "http://127.0.0.1:1", "api_key": "k", "headers": {"a": "b"}}},
        {"up": {"model": "other", "input": ["x"], "dimensions": 3}},
        {"up": {"x" * 5_000: {"y": ["z"] * 500}}},
        {f"p{number}": {"a": 1} for number in range(2_000)},
    ]

    async def each() -> None:
        for option in options:
            await attack.post(SYNC, attack.body("a", providerOptions=option))
            await attack.post(JOBS, attack.body(["a"], providerOptions=option, dry_run=True))

    await attack.crowd(4, each)


async def wrong_keys(attack: Attack) -> None:
    numbers = itertools.count()

    async def each() -> None:
        wrong = f"em_{next(numbers):012x}_{'0' * 40}"
        await attack.post(SYNC, attack.body("a"), {"authorization": f"Bearer {wrong}"})

    await attack.crowd(32, each)
