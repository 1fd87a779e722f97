"""Why a route is down, in words for operators and callers: no URL, no body, no credential in them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from models.embedding import Account
from models.errors import (
    UpstreamAuthFailed,
    UpstreamError,
    UpstreamMisconfigured,
    UpstreamOverloaded,
    UpstreamProtocolError,
    UpstreamTimeout,
)

ACCOUNT = "providers.{account}"  # its section in the configuration file
TEST_IT = "`embedmill providers test {account}`"


@dataclass(frozen=True, slots=True)
class Cause:
    """What keeps a route from answering. `message` is one clause, `advice` one sentence."""

    account: str
    code: str
    message: str
    advice: str
    status: int | None = None

    def sentence(self) -> str:
        """For the caller of a sync request, and for `last_error` of a shard."""
        return f"Provider account {self.account}: {self.message}. {self.advice}"

    def waiting(self, since: float) -> dict[str, Any]:
        """What a job says that waits for its end. `since`: unix seconds."""
        return {
            "provider": self.account,
            "code": self.code,
            "message": self.message,
            "advice": self.advice,
            "since": since,
        }


def cause_of(account: Account | str, error: UpstreamError) -> Cause:
    """The cause that an upstream error names. What the error itself advises goes before the advice by its class.

    Of an account, not only its name, it is known whether its key can change in a running process.
    """
    key_hint = ""
    if not isinstance(account, str):
        if isinstance(error, UpstreamAuthFailed) and error.code != "upstream_quota":
            key_hint = _key_hint(account)
        account = account.name
    advice = (error.advice or _advice(error)).strip().rstrip(".")
    if TEST_IT not in advice:
        advice = f"{advice}; {TEST_IT} tries it now"
    advice = (advice[:1].upper() + advice[1:] + "." + key_hint).replace("{account}", account)
    return Cause(account, error.code, error.message.rstrip("."), advice, error.status)


def _key_hint(account: Account) -> str:
    if "api_key" in account.secret_files:
        return " A new key in its file is used within seconds."
    if account.api_key is not None:
        return " The key is an environment variable: a new one needs a restart of API and workers."
    return ""


def _advice(error: UpstreamError) -> str:
    if error.code == "upstream_quota":
        return "Add credit or raise the limit at the provider; work goes on by itself within seconds."
    if isinstance(error, UpstreamAuthFailed):
        return f"Check api_key of {ACCOUNT} and what it may do, then run {TEST_IT}."
    if isinstance(error, UpstreamMisconfigured):
        return f"Check base_url of {ACCOUNT} and the route's model, then run {TEST_IT}."
    if isinstance(error, UpstreamProtocolError):
        return f"Check that base_url of {ACCOUNT} is an embeddings API, then run {TEST_IT}."
    if isinstance(error, UpstreamTimeout):
        return f"Check whether the provider is slow or out of reach; {TEST_IT} shows how long a call takes."
    if isinstance(error, UpstreamOverloaded):
        return "The provider has too much to do; work goes on by itself when it answers again."
    if not error.sent:
        return f"Check base_url of {ACCOUNT}, and that the server runs; then run {TEST_IT}."
    return "See the provider's status page; work goes on by itself when it answers again."
