"""What one embedding call is made of: inputs, options, limits, routes, batches and what became of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from models.base import random_id

Matrix = npt.NDArray[np.float32]
"""Vectors as rows: float32, C-contiguous, shape (n, width)."""

Input = str | list[int]
"""One thing to embed: a text, or the token ids of one."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one upstream call may hold, all four at once."""

    inputs_per_call: int = 2048
    tokens_per_input: int = 8192
    tokens_per_call: int = 300_000
    bytes_per_call: int = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Options:
    """What the caller asked for beside the inputs. `dimensions` None means the alias's native width."""

    dimensions: int | None = None
    input_type: str | None = None
    truncate: str = "none"  # none: an over-long input is an error | end: its end is cut off
    user: str | None = None
    provider_options: dict[str, Any] = field(default_factory=dict)

    def sent_to(self, account: Account) -> str | None:
        """The field of the request in which the caller sent something of its own for this account, where it did.

        `user` too: gateways have limits and refusals for single users.
        """
        names = (account.name, account.kind)
        field_name = next((f"providerOptions.{name}" for name in names if self.provider_options.get(name)), None)
        return field_name or ("user" if self.user else None)


@dataclass(frozen=True, slots=True)
class Account:
    """A configured credential, base URL and quotas at a provider. `name` is its section in the configuration."""

    name: str
    kind: str
    base_url: str
    api_key: str | None = field(default=None, repr=False)
    max_concurrency: int = 64
    # Whether max_concurrency holds for all processes together. Else it holds for each, where there is no quota.
    concurrency_is_global: bool = False
    timeout_s: float = 60.0
    # Quotas, for each upstream model by itself; None: none is known.
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    # That its replies must name the model asked for (True), or this one; False: any. None: no other, once they have
    # named the one asked for.
    expect_model: bool | str | None = None
    # A vector of zeros is else taken for a fault.
    allow_zero_vectors: bool = False
    # A text that is embedded again at intervals: another vector means another model behind the account's routes.
    drift_probe: str | None = None
    # The HTTP proxy of its calls; "": none. None: EMBEDMILL_UPSTREAM_PROXY's. It may hold a credential.
    proxy: str | None = field(default=None, repr=False)
    encoding: str = "base64"  # how vectors are asked for: "base64" or "float"
    # Names that callers may set under `providerOptions`; None: all that are not refused everywhere.
    allowed_options: frozenset[str] | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    # Where its secrets lie that a running process reads again: `api_key` or `proxy`, and the file's path.
    secret_files: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Route:
    """One way to serve an alias: account, upstream model, limits and price."""

    account: Account
    upstream_model: str
    width: int  # native width of the upstream model
    limits: Limits
    usd_per_million_tokens: Decimal
    # How a narrower width is had: "native" (the provider has a field for it) or "cut" (Matryoshka, renormalised).
    narrowing: str = "native"
    accepts_tokens: bool = False
    priority: int = 0
    weight: int = 1
    tokenizer: str | None = None  # "cl100k", where it is at hand here; None: tokens are estimated
    expect_model: str | None = None  # the model that replies must name, where they name one
    model_name_unchecked: bool = False  # replies may name any model
    alias: str = ""  # the model of the configuration that it belongs to, for messages
    encoding: str = "base64"  # how vectors are asked for: "base64" or "float"

    @property
    def provider(self) -> str:
        return self.account.name


@dataclass(frozen=True, slots=True)
class Alias:
    """The public model name that a caller asks for. All its routes share one vector space."""

    name: str
    width: int
    allowed_dimensions: frozenset[int] | range
    max_input_tokens: int
    space: str
    routes: tuple[Route, ...]
    usd_per_million_tokens: Decimal


@dataclass(frozen=True, slots=True)
class Batch:
    """The inputs of one upstream call. `indexes[i]` is the caller's index of `inputs[i]`."""

    inputs: Sequence[Input]
    indexes: Sequence[int]
    tokens: int  # estimated
    width: int  # of the vectors wanted back
    options: Options
    bytes: int = 0  # of its texts in UTF-8; 0: not known, or token arrays are among them
    is_bare_string: bool = False  # the caller sent one string, not a list: it is sent upstream as one string
    is_truncated: bool = False  # its one input is only the beginning of the caller's: the provider refused more


@dataclass(frozen=True, slots=True)
class InputError:
    """Why one input has no vector."""

    code: str
    message: str
    retryable: bool = False


@dataclass(frozen=True, slots=True)
class Call:
    """One upstream call that was made, failed ones too. Times are unix seconds."""

    provider: str
    upstream_model: str
    success: bool
    status: int | None
    started_at: float
    ended_at: float
    error: str | None = None
    ambiguous: bool = False  # sent, but no answer came: it may have been billed
    inputs: int = 0
    id: str = field(default_factory=lambda: random_id("call"))
    wasted: bool = False  # answered with a 2xx, and so billed, but nobody gets what it brought
    # Of a wasted or an ambiguous call: its tokens as reported or estimated, and their cost (of an ambiguous one, the
    # most that it can have cost).
    tokens: int = 0
    tokens_estimated: bool = False
    cost_usd: Decimal = Decimal(0)
    usage_doubt: str | None = None  # why the token count of the reply is not used


class BatchOutcome(NamedTuple):
    """What one finished batch brought: a vector for each of `indexes`, or an error for each of them."""

    indexes: Sequence[int]
    vectors: Matrix | None
    error: InputError | None
    tokens: int
    tokens_estimated: bool
    cost_usd: Decimal
    route: Route | None
    truncated: Sequence[int] = ()  # those of `indexes` that were not embedded whole
