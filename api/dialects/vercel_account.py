"""The account calls of Vercel's gateway client: credits, the record of one sync call, and a report of the spending."""

from __future__ import annotations

from datetime import UTC, datetime

import orjson
from fastapi import Request
from starlette.responses import Response

from api.dialects.dialect import refuse
from api.dialects.vercel import VercelRoute
from api.http.auth import caller_of, runtime_of
from api.http.params import choice_param
from engine.ledger.usage_reads import DAY_S, GROUPS, Generation, find_generation, spending, spent_usd
from models.base import usd_text
from models.errors import GenerationNotFound, InvalidInput
from models.key import Scope

# Projects have no budget today. Clients read the balance as a number, and this is one in each of their languages.
NO_BUDGET = "Infinity"
DATE = "%Y-%m-%d"


class VercelAccountRoute(VercelRoute):
    """A route of the account."""

    required_scope = Scope.USAGE


async def get_vercel_credits(request: Request) -> Response:
    """GET /v1/credits: what the key's project has spent. Its query, which names a team there, is not read."""
    spent = await spent_usd(runtime_of(request).database, caller_of(request).project)
    return Response(orjson.dumps({"balance": NO_BUDGET, "total_used": usd_text(spent)}), media_type="application/json")


async def get_vercel_generation(request: Request) -> Response:
    """GET /v1/generation?id=: the record of a sync call by its `generationId`."""
    generation_id = request.query_params.get("id", "")
    if not generation_id:
        raise InvalidInput(
            "Missing required parameter: 'id'. Send the `generationId` of an answer in the query.",
            param="id",
            code="missing_required_parameter",
        )
    runtime, project = runtime_of(request), caller_of(request).project
    found = await find_generation(runtime.database, project, generation_id)
    if found is None:  # its row may be in the buffer of this process
        await runtime.usage.flush()
        found = await find_generation(runtime.database, project, generation_id)
    if found is None:
        raise GenerationNotFound(
            "No such generation: check the id, and that the key is of the project that made the call.", param="id"
        )
    return Response(orjson.dumps({"data": _document(found)}), media_type="application/json")


async def get_vercel_report(request: Request) -> Response:
    """GET /v1/report: what the key's project has spent between two days, by day, model, provider or user."""
    group_by = choice_param(request, "group_by", GROUPS)
    choice_param(request, "date_part", ("day",))
    for name in ("tags", "credential_type"):
        refuse(name, request.query_params.get(name), "the ledger does not keep it: leave it out")
    start, end = _day(request, "start_date"), _day(request, "end_date")
    filters = {"model": "model", "provider": "provider", "user": "user_id"}
    names = {column: request.query_params[name] for column, name in filters.items() if name in request.query_params}
    found = await spending(
        runtime_of(request).database, caller_of(request).project, start, end + DAY_S, group_by, names
    )
    results = [
        {
            group_by: _date(int(each.group)) if group_by == "day" and each.group is not None else each.group or "",
            "total_cost": float(each.cost_usd),
            "input_tokens": each.tokens,
            "request_count": each.requests,
        }
        for each in found
    ]
    return Response(orjson.dumps({"results": results}), media_type="application/json")


def _day(request: Request, name: str) -> float:
    """The first second of a day (UTC) in the query. Raises InvalidInput."""
    try:
        return datetime.strptime(request.query_params.get(name, ""), DATE).replace(tzinfo=UTC).timestamp()
    except ValueError:
        raise InvalidInput(f"Invalid '{name}': expected YYYY-MM-DD.", param=name, code="invalid_value") from None


def _date(days: int) -> str:
    return datetime.fromtimestamp(days * DAY_S, UTC).strftime(DATE)


def _document(found: Generation) -> dict[str, object]:
    """The fields that the client requires. What embeddings have not, or the ledger does not keep, is 0."""
    cost = float(found.cost_usd)
    return {
        "id": found.id,
        "total_cost": cost,
        "usage": cost,
        "upstream_inference_cost": 0,
        "created_at": datetime.fromtimestamp(found.at, UTC).isoformat().replace("+00:00", "Z"),
        "model": found.alias,
        "is_byok": False,
        "provider_name": found.provider,
        "streamed": False,
        "finish_reason": "stop" if found.is_delivered else "error",
        "latency": 0,
        "generation_time": 0,
        "native_tokens_prompt": found.tokens,
        "native_tokens_completion": 0,
        "native_tokens_reasoning": 0,
        "native_tokens_cached": 0,
        "native_tokens_cache_creation": 0,
        "billable_web_search_calls": 0,
    }
