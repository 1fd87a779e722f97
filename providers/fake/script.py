"""The script of a fake upstream: rules that say which calls it breaks, how often and how.

A script is a list of rules, from JSON, TOML (`[[rules]]`) or Python:

    {"when": {"call": 3},               the 3rd call since the script was loaded (every: N, contains: "text",
                                        probability: 0.05, model: "name"; all conditions must hold)
     "times": 1,                        at most so often; absent: always
     "do": {"status": 429, "retry_after": 1}}

Every rule that matches adds its latency and counts against its rate limit; of the rules that do something else, the
first that matches wins, and only that one's `times` is spent.
"""

from __future__ import annotations

import hashlib
import math
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from models.embedding import Input
from models.errors import ConfigError
from providers.fake.rate_limit import RateLimit, Refusal, SlidingWindow

Fault = Literal["hang", "close", "reset", "truncate"]
BrokenReply = Literal[
    "shuffle", "short", "long", "duplicate_index", "missing_index", "wrong_width", "nan", "inf", "zero",
    "html", "empty", "not_json", "cut_json", "floats_only", "no_usage", "wrong_model",
]  # fmt: skip


class When(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The conditions of a rule; all that are set must hold."""

    call: int | None = None
    every: int | None = None
    contains: str | None = None
    probability: float | None = None
    model: str | None = None
    longer_than: int | None = None  # some text of the call has more characters
    encoding_format: Literal["float", "base64"] | None = None  # what the call asks for


class Action(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a rule does to a call."""

    status: int | None = None  # an error answer, with OpenAI's own message and code unless given here
    code: str | None = None
    message: str | None = None
    body: str | dict[str, Any] | list[Any] | None = None  # the error's body in another vendor's form: a text, or JSON
    usage: Any = None  # of a 200, in place of the right one
    gzip: bool = False  # compressed, although nobody asked for it
    retry_after: int | float | str | None = None  # seconds or an HTTP date, sent as it is written here
    retry_after_ms: float | None = None
    latency_ms: float = 0.0
    jitter_ms: float = 0.0  # added to the latency, uniform, seeded
    slow_body_ms: float = 0.0  # the second half of the body comes so much later
    fault: Fault | None = None
    reply: BrokenReply | None = None
    big_body_bytes: int = 0  # the reply is padded with white space to this size
    billed: bool | None = None  # default: every 200 is billed, a hang, close or reset is not
    rate_limit: RateLimit | None = None

    @property
    def changes_answer(self) -> bool:
        """True when it does more than add latency or a rate limit."""
        odd_body = self.usage is not None or self.gzip or self.big_body_bytes or self.slow_body_ms
        return bool(self.status or self.fault or self.reply or odd_body)


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What to do to which calls, and how often."""

    do: Action
    when: When = When()
    times: int | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """What the script does to one call."""

    delay_s: float = 0.0
    action: Action | None = None
    refusal: Refusal | None = None
    quota: SlidingWindow | None = None


class FakeScript:
    """Rules with their counters. One script serves one upstream."""

    def __init__(self, rules: Sequence[Rule] = (), seed: int = 0) -> None:
        self.rules = tuple(rules)
        self.seed = seed
        self.calls = 0
        self._left = [math.inf if rule.times is None else rule.times for rule in self.rules]
        self._windows = [SlidingWindow(rule.do.rate_limit) if rule.do.rate_limit else None for rule in self.rules]

    @classmethod
    def parse(cls, data: object, seed: int = 0) -> FakeScript:
        """Read a list of rules, or {"rules": [...], "seed": n}. Raises ConfigError naming the place that is wrong."""
        if isinstance(data, dict):
            unknown = set(data) - {"rules", "seed"}
            if unknown:
                raise ConfigError(f"fake script: unknown key {min(map(str, unknown))!r}; it takes 'rules' and 'seed'")
            seed = data.get("seed", seed)
            data = data.get("rules", [])
        try:
            return cls(msgspec.convert(data, list[Rule]), seed)
        except msgspec.ValidationError as error:
            raise ConfigError(f"fake script: {error}") from error

    @classmethod
    def parse_text(cls, text: str) -> FakeScript:
        """Read a script from JSON or TOML text. Raises ConfigError."""
        try:
            return cls.parse(msgspec.json.decode(text))
        except msgspec.DecodeError as not_json:
            try:
                return cls.parse(tomllib.loads(text))
            except tomllib.TOMLDecodeError as not_toml:
                raise ConfigError(f"fake script: neither JSON ({not_json}) nor TOML ({not_toml})") from not_toml

    def decide(
        self, inputs: Sequence[Input], model: str, tokens: int, now: float, encoding_format: str | None = None
    ) -> Decision:
        """Count the call, and apply the rules that match it."""
        self.calls += 1
        delay_s = 0.0
        chosen: Action | None = None
        refusal: Refusal | None = None
        quota: SlidingWindow | None = None
        for position, rule in enumerate(self.rules):
            action = rule.do
            if action.changes_answer and (chosen or refusal):
                continue
            if self._left[position] <= 0 or not self._matches(position, rule.when, inputs, model, encoding_format):
                continue
            self._left[position] -= 1
            delay_s += (action.latency_ms + action.jitter_ms * self._chance(position, "jitter")) / 1000
            window = self._windows[position]
            if window is not None:
                quota = window
                refusal = refusal or window.take(tokens, now)
            if action.changes_answer and not refusal:
                chosen = action
        return Decision(delay_s, chosen, refusal, quota)

    def _matches(
        self, position: int, when: When, inputs: Sequence[Input], model: str, encoding_format: str | None
    ) -> bool:
        return (
            (when.longer_than is None or any(isinstance(item, str) and len(item) > when.longer_than for item in inputs))
            and (when.encoding_format is None or when.encoding_format == (encoding_format or "float"))
            and (when.call is None or self.calls == when.call)
            and (when.every is None or self.calls % when.every == 0)
            and (when.model is None or when.model == model)
            and (when.contains is None or any(isinstance(item, str) and when.contains in item for item in inputs))
            and (when.probability is None or self._chance(position, "match") < when.probability)
        )

    def _chance(self, position: int, purpose: str) -> float:
        """A number in [0, 1) that depends on the seed, the rule and the call alone."""
        name = f"{self.seed}/{position}/{self.calls}/{purpose}"
        return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest()) / 2.0**64
