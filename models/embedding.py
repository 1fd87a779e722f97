"""Value types of an embedding call: inputs, options, limits, routes, batches and outcomes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from models.base import random_id

Matrix = npt.NDArray[np.float32]
"""Vectors as rows: float32, C-contiguous, shape (n, width)."""

Input = str | list[int]
"""One thing to embed: a text, or the token ids of one."""


Strategy = Literal["weighted", "least-cost", "least-latency", "least-busy", "hash"]
"""How routes of one priority are ordered."""

RouteKey = tuple[str, str]
"""Account and upstream model."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one upstream call; all four apply."""

    inputs_per_call: int = 2048
    tokens_per_input: int = 8192
    tokens_per_call: int = 300_000
    bytes_per_call: int = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Options:
    """A caller's options. `dimensions` None means the alias's native width."""

    dimensions: int | None = None
    input_type: str | None = None
    truncate: str = "none"  # none: a too long input is an error | end: its end is removed
    user: str | None = None
    provider_options: dict[str, Any] = field(default_factory=dict)

    def sent_to(self, account: Account) -> str | None:
        """The request field in which the caller sent options for this account; None without any.

        `user` too: gateways have limits and refusals for single users.
        """
        names = (account.section, account.kind)
        field_name = next((f"providerOptions.{name}" for name in names if self.provider_options.get(name)), None)
        return field_name or ("user" if self.user else None)


@dataclass(frozen=True, slots=True)
class Account:
    """A configured credential, base URL and quotas at a provider.

    `name` is its section in the configuration; with `#2`, … behind it where the section has several credentials.
    """

    name: str
    kind: str
    base_url: str
    api_key: str | None = field(default=None, repr=False)
    max_concurrency: int = 64
    # Whether max_concurrency holds for all processes together. Else it holds for each, where there is no quota.
    concurrency_is_global: bool = False
    timeout_s: float = 60.0
    # Quotas of each upstream model; None: unknown.
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    # Model that replies must name: True: the requested one; a name: that one; False: any; None: any until a reply has
    # named the requested one, then only that.
    expect_model: bool | str | None = None
    # Without it a vector of zeros counts as a fault.
    allow_zero_vectors: bool = False
    # A text that is embedded again at intervals: another vector means another model behind the account's routes.
    drift_probe: str | None = None
    # The HTTP proxy of its calls; "": none. None: EMBEDMILL_UPSTREAM_PROXY's. It may hold a credential.
    proxy: str | None = field(default=None, repr=False)
    encoding: str = "base64"  # how vectors are asked for: "base64" or "float"
    # Names that callers may set under `providerOptions`; None: all that are not refused everywhere.
    allowed_options: frozenset[str] | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    # Secrets beside `api_key`, by the name of their setting.
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)  # sent with each call; may hold a credential
    body: Mapping[str, Any] = field(default_factory=dict)  # fields of each call that the caller and we do not set
    renames: Mapping[str, str] = field(default_factory=dict)  # our name of a field of the body → the server's
    strip_headers: frozenset[str] = frozenset()  # of ours, not sent
    ca_file: str | None = None  # PEM file of certificates that are trusted for its calls
    # Files of secrets that a running process reads again: `api_key` or `proxy`, and the path.
    secret_files: Mapping[str, str] = field(default_factory=dict)
    key_rank: int = 0  # of several credentials that are used in order: the lowest first

    @property
    def section(self) -> str:
        """Its section in the configuration, which all of its credentials share."""
        return self.name.partition("#")[0]


@dataclass(frozen=True, slots=True)
class Route:
    """One way to serve an alias: account, upstream model, limits and price."""

    account: Account
    upstream_model: str
    width: int  # native width of the upstream model
    limits: Limits
    usd_per_million_tokens: Decimal
    # How a narrower width is produced: "native" (by a field of the request) or "cut" (Matryoshka truncation here,
    # renormalised).
    narrowing: str = "native"
    accepts_tokens: bool = False
    priority: int = 0
    weight: int = 1
    tokenizer: str | None = None  # "cl100k", where it is available; None: tokens are estimated
    expect_model: str | None = None  # the model that replies must name, where they name one
    model_name_unchecked: bool = False  # replies may name any model
    alias: str = ""  # the model of the configuration that it belongs to, for messages
    encoding: str = "base64"  # how vectors are asked for: "base64" or "float"
    # By input_type: a text with `{text}` in it, which is embedded in place of the input.
    templates: Mapping[str, str] = field(default_factory=dict)
    token_arrays: str | None = None  # tokenizer by which token arrays become text, where the provider takes only text
    # Vectors are brought to length 1 here: "never", "always", or the "narrow" ones, which the provider does not.
    normalize: str = "never"
    is_asymmetric: bool = False  # the model embeds queries and documents differently

    @property
    def provider(self) -> str:
        """The name of the account."""
        return self.account.name

    @property
    def takes_token_arrays(self) -> bool:
        """True when token arrays can be embedded on this route, as they are or decoded."""
        return self.accepts_tokens or self.token_arrays is not None

    @property
    def key(self) -> RouteKey:
        """What identifies the upstream: routes of several models may have the same."""
        return self.account.name, self.upstream_model


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
    strategy: Strategy = "weighted"  # the order of routes of one priority
    hedge: bool = False  # an interactive call that takes unusually long is made on a second route as well
    verify_spaces: bool = True  # its routes are compared with the first one before they are used


@dataclass(frozen=True, slots=True)
class Batch:
    """The inputs of one upstream call. `indexes[i]` is the caller's index of `inputs[i]`."""

    inputs: Sequence[Input]
    indexes: Sequence[int]
    tokens: int  # estimated
    width: int  # requested width of the vectors
    options: Options
    bytes: int = 0  # of its texts in UTF-8; 0: unknown, or it contains token arrays
    is_bare_string: bool = False  # the caller sent one string, not a list: it is sent upstream as one string
    added_bytes: int = 0  # that a template adds to each text; `bytes` and `tokens` include them
    is_truncated: bool = False  # its one input is only the beginning of the caller's: the provider refused more
    window_share: float = 1.0  # of a window of `truncate: "mean"`: less than 1 after the provider refused longer ones


@dataclass(frozen=True, slots=True)
class InputError:
    """Why one input has no vector."""

    code: str
    message: str
    retryable: bool = False


@dataclass(frozen=True, slots=True)
class Call:
    """One upstream call, successful or failed. Times are unix seconds."""

    provider: str
    upstream_model: str
    success: bool
    status: int | None
    started_at: float
    ended_at: float
    error: str | None = None
    ambiguous: bool = False  # sent and not answered: it may have been billed
    inputs: int = 0
    id: str = field(default_factory=lambda: random_id("call"))
    wasted: bool = False  # answered with a 2xx, so billed, but its vectors are not used
    # Of a wasted or an ambiguous call: reported or estimated tokens, and their cost (of an ambiguous one, an upper
    # bound).
    tokens: int = 0
    tokens_estimated: bool = False
    cost_usd: Decimal = Decimal(0)
    usd_per_million_tokens: Decimal | None = None  # the price that the cost is by; None: unknown
    usage_doubt: str | None = None  # why the token count of the reply is not used


class BatchOutcome(NamedTuple):
    """The outcome of one batch: a vector for each of `indexes`, or one error for all of them."""

    indexes: Sequence[int]
    vectors: Matrix | None
    error: InputError | None
    tokens: int
    tokens_estimated: bool
    cost_usd: Decimal
    route: Route | None
    truncated: Sequence[int] = ()  # those of `indexes` of which only a part was embedded
