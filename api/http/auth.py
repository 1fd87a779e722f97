"""Authentication and scopes. Every route needs a key unless it is listed as public; an unlisted route is refused."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.responses import Response
from starlette.types import Receive, Send
from starlette.types import Scope as RequestScope

from api.http import compression
from api.http.concurrency_limits import Budgets
from api.http.errors import ErrorBody, openai_body
from api.http.key_headers import SentKey, sent_keys
from engine.access.keys import Caller, KeyAuthenticator
from engine.runtime import Runtime
from models.errors import InvalidInput, NotAuthenticated, NotPermitted
from models.key import Scope

PUBLIC = frozenset({"healthz", "readyz", "metrics", "health", "ping", "version"})
# Pages of the documentation, which are no APIRoutes: the only other ones that need no key.
PUBLIC_PATHS = frozenset({"/docs", "/openapi.json"})
REQUIRED_SCOPE: dict[str, Scope] = {
    "create_embeddings": Scope.EMBEDDINGS,
    "create_deployment_embeddings": Scope.EMBEDDINGS,
    "create_engine_embeddings": Scope.EMBEDDINGS,
    "list_models": Scope.EMBEDDINGS,
    "get_model": Scope.EMBEDDINGS,
    "list_endpoints": Scope.EMBEDDINGS,
    "create_job": Scope.JOBS,
    "list_jobs": Scope.JOBS,
    "get_job": Scope.JOBS,
    "get_results": Scope.JOBS,
    "get_errors": Scope.JOBS,
    "get_job_routes": Scope.JOBS,
    "cancel_job": Scope.JOBS,
    "pause_job": Scope.JOBS,
    "resume_job": Scope.JOBS,
    "retry_job": Scope.JOBS,
    "delete_job": Scope.JOBS,
    "create_batch": Scope.JOBS,
    "list_batches": Scope.JOBS,
    "get_batch": Scope.JOBS,
    "cancel_batch": Scope.JOBS,
    "get_batch_results": Scope.JOBS,
    "create_file": Scope.JOBS,
    "list_files": Scope.JOBS,
    "get_file": Scope.JOBS,
    "get_file_content": Scope.JOBS,
    "delete_file": Scope.JOBS,
    "create_upload": Scope.JOBS,
    "add_upload_part": Scope.JOBS,
    "complete_upload": Scope.JOBS,
    "cancel_upload": Scope.JOBS,
    "create_webhook_endpoint": Scope.JOBS,
    "list_webhook_endpoints": Scope.JOBS,
    "get_webhook_endpoint": Scope.JOBS,
    "update_webhook_endpoint": Scope.JOBS,
    "delete_webhook_endpoint": Scope.JOBS,
    "rotate_webhook_secret": Scope.JOBS,
    "test_webhook_endpoint": Scope.JOBS,
    "list_webhook_event_types": Scope.JOBS,
    "list_webhook_deliveries": Scope.JOBS,
    "replay_webhook_delivery": Scope.JOBS,
}
# The sync verb by its own path and by those of other clients: each of its answers tells the key's limits.
SYNC_ROUTES = frozenset({"create_embeddings", "create_deployment_embeddings", "create_engine_embeddings"})

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class GuardedRoute(APIRoute):
    """The app's route class: checks the key before anything of the request is read.

    Our endpoints take only the request, so they are called directly: FastAPI's own handler would parse the query and
    solve dependencies that nobody uses, at a tenth of a sync request's CPU.
    """

    error_body: ErrorBody = staticmethod(openai_body)
    read_keys: Callable[[Request], list[SentKey]] = staticmethod(sent_keys)

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        super().__init__(path, endpoint, **options)
        handler = self.get_route_handler()

        async def respond(scope: RequestScope, receive: Receive, send: Send) -> None:
            response = await handler(Request(scope, receive, send))
            await response(scope, receive, send)

        self.app = respond

    @property
    def tells_limits(self) -> bool:
        """True where each answer tells the key's limits."""
        return self.name in SYNC_ROUTES

    @property
    def required_scope(self) -> Scope | None:
        """The scope that a key needs here; None: only the administrator's opens it."""
        return REQUIRED_SCOPE.get(self.name)

    def get_route_handler(self) -> Handler:
        """The endpoint, behind the check of key and scope unless it is public."""
        handler: Handler = self.endpoint
        if self.name in PUBLIC:
            return handler
        required, read_keys = self.required_scope, self.read_keys

        async def authorized(request: Request) -> Response:
            caller = await authenticate(request, read_keys(request))
            if required is None or (required not in caller.scopes and Scope.ADMIN not in caller.scopes):
                raise _missing_scope(required, caller)
            request.scope.setdefault("state", {})["caller"] = caller
            calls = budgets_of(request).calls
            calls.acquire(caller.key_id)
            try:
                response = await handler(request)
                if compression.is_candidate(request, response):
                    response = await compression.compress(request, response)
                return response
            finally:
                calls.release(caller.key_id)

        return authorized


def _missing_scope(required: Scope | None, caller: Caller) -> NotPermitted:
    scope, key_scopes = required or Scope.ADMIN, ", ".join(sorted(caller.scopes)) or "none"
    return NotPermitted(
        f"This key may not do this: it needs the scope '{scope}', and has {key_scopes}. "
        f"Use a key that has it; whoever runs this server makes one with `embedmill keys create --scope {scope}`.",
        code="missing_scope",
    )


async def authenticate(request: Request, sent: list[SentKey]) -> Caller:
    """The caller behind the first of the keys. Raises NotAuthenticated, InvalidInput or StorageUnavailable."""
    header, text = sent[0]
    keys = runtime_of(request).keys
    try:
        caller = await keys.caller(text)
    except NotAuthenticated as error:
        judged = f"The header {header.title} was judged; its form is `{header.form}`."
        raise NotAuthenticated(f"{error.message} {judged}") from None
    if len(sent) > 1:
        await _refuse_others(keys, sent)
    return caller


async def _refuse_others(keys: KeyAuthenticator, sent: list[SentKey]) -> None:
    """Raises InvalidInput for another good key than the first one."""
    header, text = sent[0]
    for other_header, other in sent[1:]:
        if other != text and await _is_good(keys, other):
            raise InvalidInput(
                f"The request has two API keys, in {header.title} and {other_header.title}: send one of them.",
                code="several_api_keys",
            )


async def _is_good(keys: KeyAuthenticator, text: str) -> bool:
    try:
        await keys.caller(text)
    except NotAuthenticated:
        return False
    return True


def runtime_of(request: Request) -> Runtime:
    """The runtime of the app that serves the request."""
    runtime: Runtime = request.scope["app"].state.runtime
    return runtime


def budgets_of(request: Request) -> Budgets:
    """The budgets of this process."""
    budgets: Budgets = request.scope["app"].state.budgets
    return budgets


def caller_of(request: Request) -> Caller:
    """The authenticated caller of the request."""
    caller: Caller = request.scope["state"]["caller"]  # read several times a request: attribute access would cost more
    return caller
