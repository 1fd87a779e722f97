"""RouteState: what this process knows of one account and upstream model, and what paces and counts the calls to it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from engine.limiter.registry import LimiterRegistry
from engine.observability.route_metrics import RouteMetrics
from engine.planning.token_estimator import TokenEstimator
from engine.route_state.call_size_limits import CallSizeLimits
from engine.route_state.call_statistics import CallStatistics
from engine.route_state.control_call import SharedControlCall
from engine.route_state.credential_probe import CredentialProbe
from engine.route_state.encoding import RouteEncoding
from engine.route_state.recent_calls import RecentCalls
from engine.route_state.tenant_refusals import TenantRefusals
from models.embedding import Account


@dataclass(slots=True)
class HangProbes:
    """Control calls beside late calls on one route. Instants on the event loop's clock."""

    sent_at: float = -math.inf
    failed_at: float = -math.inf
    answered_at: float = -math.inf


class RouteState:
    """All state of one account and upstream model, each part with a duty of its own.

    Routes of several aliases may share it. A call gets it once, from `Router.state_of`, and hands it on. What a part
    has to say only rarely is behind a plain attribute of the part, such as `has_any` or `is_verified`.
    """

    def __init__(self, account: Account, upstream_model: str, limiters: LimiterRegistry) -> None:
        self.estimator = TokenEstimator()
        self.limiter = limiters.create(account, upstream_model, self.estimator)
        self.metrics = RouteMetrics(account.name, upstream_model)
        self.statistics = CallStatistics()
        self.call_size_limits = CallSizeLimits()
        self.encoding = RouteEncoding()
        self.credential_probe = CredentialProbe()
        self.control_call = SharedControlCall()
        self.hang_probes = HangProbes()
        self.tenant_refusals = TenantRefusals()
        self.recent_calls = RecentCalls()
        self.in_flight = 0  # calls of this process
        self.health_probes = 0  # of this process, under way
        self.faults_in_a_row = 0  # of bulk calls
        self.is_model_name_confirmed = False  # a reply has named the requested model
        self.next_doubt_log_at = 0.0  # about its token counts, on time.monotonic()
