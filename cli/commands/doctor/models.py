"""The doctor's checks of models: quarantined routes of the drift check, and the built-in local model."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from cli.commands.doctor.check_runner import run_check
from cli.commands.doctor.finding import Finding
from cli.commands.doctor.storage import with_database
from engine.config.settings import Settings
from engine.routing import drift, space_checks
from engine.upstream.in_process import LocalModel
from models.embedding import Alias


def check_drift(settings: Settings, aliases: Mapping[str, Alias]) -> Finding:
    """A finding that fails while a route is quarantined."""
    watched = {route.provider for alias in aliases.values() for route in alias.routes if route.account.drift_probe}
    if not watched:
        return Finding("drift", "ok", "no account has a drift_probe")
    routes = {(*route.key, alias.space) for alias in aliases.values() for route in alias.routes}
    found = asyncio.run(with_database(settings, drift.quarantined))
    rows = [row for row in found if (row.account, row.upstream_model, row.space) in routes]  # others serve nobody
    if not rows:
        return Finding("drift", "ok", ", ".join(sorted(watched)))
    details = "; ".join(
        f"{row.account} {row.upstream_model} ({row.space}): cosine {row.similarity:.6f}" for row in rows
    )
    fix = f"another model answers there; when that is right: `embedmill doctor --release {rows[0].account}`"
    return Finding("drift", "fail", f"quarantined: {details}", fix)


def check_spaces(settings: Settings, aliases: Mapping[str, Alias]) -> list[Finding]:
    """A finding that fails while a route gives other vectors than its model's first; nothing where none is compared."""
    compared = [alias for alias in aliases.values() if alias.verify_spaces and len({r.key for r in alias.routes}) > 1]
    if not compared:
        return []
    routes = {(alias.name, *route.key) for alias in compared for route in alias.routes}
    found = asyncio.run(with_database(settings, space_checks.mismatches))
    rows = [row for row in found if (row.alias, row.account, row.upstream_model) in routes]
    if not rows:
        return [Finding("spaces", "ok", ", ".join(sorted(alias.name for alias in compared)))]
    details = "; ".join(f"{row.alias}: {row.account} {row.upstream_model}, cosine {row.similarity:.6f}" for row in rows)
    fix = (
        f"its vectors are not those of the model's first route: take the route out, or correct it and run "
        f"`embedmill doctor --release {rows[0].account}`"
    )
    return [Finding("spaces", "fail", f"quarantined: {details}", fix)]


def release_quarantine(settings: Settings, account: str) -> Finding:
    """Let the quarantined routes of an account serve again."""
    drifted = asyncio.run(with_database(settings, lambda database: drift.unquarantine(database, account)))
    compared = asyncio.run(with_database(settings, lambda database: space_checks.forget(database, account)))
    if not drifted and not compared:
        return Finding("release", "warn", f"no drift check of {account} is known", "is this the account's name?")
    done = [f"{drifted} routes of {account} serve again; their next answers are the references"] if drifted else []
    if compared:
        done.append(f"{compared} routes of {account} are compared anew with the first of their model before they serve")
    return Finding("release", "ok", "; ".join(done))


def check_local_models(aliases: Mapping[str, Alias]) -> list[Finding]:
    """One finding when any alias runs in-process; nothing where no local model is configured."""
    if not any(route.account.kind == "local" for alias in aliases.values() for route in alias.routes):
        return []

    def look() -> Finding:
        rows, tokens, _ = LocalModel().embed(["is the model there?"])
        return Finding("local model", "ok", f"{rows.shape[1]} numbers for {tokens} tokens")

    return [run_check("local model", look)]
