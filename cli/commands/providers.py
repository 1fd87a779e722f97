"""`embedmill providers …`: the kinds of providers, and real calls to the accounts of the configuration."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Annotated

import typer

from cli.commands.options import JsonOption

if TYPE_CHECKING:
    from engine.account_check import RouteTest
    from engine.config.settings import Settings

app = typer.Typer(help="The kinds of providers, and tests of the accounts of the configuration.")


@app.callback(invoke_without_command=True)
def kinds(context: typer.Context, as_json: JsonOption = False) -> None:
    """List the kinds of providers with what each can do; `test ACCOUNT` makes a real call."""
    if context.invoked_subcommand is not None:
        return
    import msgspec

    from cli.output.provider_table import COLUMNS, provider_rows
    from cli.output.terminal import out, print_json, table

    rows = provider_rows()
    if as_json:
        print_json(msgspec.json.encode([dict(zip(COLUMNS, row, strict=True)) for row in rows]))
    else:
        out.print(table(*COLUMNS, rows=[[cell.replace("`", "") for cell in row] for row in rows], right=("inputs",)))


@app.command("test")
def test_(
    name: Annotated[
        str,
        typer.Argument(
            metavar="ACCOUNT",
            help="Its section [providers.NAME], with all of its keys; or NAME#2, … for one of several keys alone.",
        ),
    ],
    as_json: JsonOption = False,
) -> None:
    """Make one real call on each route of an account: width, tokens, time, price, and whether the configuration agrees.

    An account that answers is used again at once by all processes, and jobs that wait for it go on. Exit code 1 when a
    route does not answer as it should.
    """
    import msgspec

    from cli.commands.doctor.brokers import NO_BROKER_FIX, no_broker
    from cli.config_file import with_config
    from cli.errors import CODES, Failure, NotFound
    from cli.output.terminal import err, out, print_json
    from engine.config import config_file
    from engine.config.settings import Settings

    settings = Settings.from_environment(with_config(os.environ))
    aliases = config_file.load(settings.config, data_dir=settings.data_dir)
    routes = [route for alias in aliases.values() for route in alias.routes]
    accounts = sorted({each for route in routes for each in (route.account.section, route.provider)})
    if name not in accounts:
        raise NotFound(f"no model has a route to an account {name!r}", f"accounts with routes: {', '.join(accounts)}")
    if not settings.broker:
        note = (
            f"no broker: {no_broker(settings)}. The account is tried without; jobs that wait for it go on once one runs"
        )
        err.print(f"{note} → {NO_BROKER_FIX}", markup=False)
    tests = asyncio.run(_check_readable(settings, name))
    if as_json:
        print_json(msgspec.json.encode([_facts(test) for test in tests]))
    else:
        for test in tests:
            out.print(_line(test.provider, test), markup=False, highlight=False)
    if any(test.cause is not None for test in tests):
        raise typer.Exit(CODES[Failure.SERVER])


async def _check_readable(settings: Settings, name: str) -> list[RouteTest]:
    from engine.account_check import check_account
    from engine.runtime import Runtime

    runtime = Runtime.open(settings)
    try:
        return await check_account(runtime, name)
    finally:
        await runtime.close()


def _facts(test: RouteTest) -> dict[str, object]:
    cause = test.cause
    return {
        "account": test.provider,
        "model": test.alias,
        "upstream_model": test.upstream_model,
        "ok": cause is None,
        "dimensions": test.width,
        "seconds": round(test.seconds, 3),
        "tokens": test.tokens,
        "usd_per_million_tokens": str(test.usd_per_million_tokens),
        "cost_usd": f"{test.cost_usd:f}",
        "error": None
        if cause is None
        else {"code": cause.code, "status": cause.status, "message": cause.message, "advice": cause.advice},
    }


def _line(account: str, test: RouteTest) -> str:
    start = f"{account}, {test.upstream_model} (model {test.alias}): "
    if test.cause is not None:
        return f"{start}FAIL after {test.seconds:.2f} s: {test.cause.message}. {test.cause.advice}"
    counted = "no token count" if test.tokens is None else f"{test.tokens} tokens"
    price = f"${test.usd_per_million_tokens} per million tokens"
    return f"{start}ok: {test.width} numbers as configured, {counted}, {test.seconds * 1000:.0f} ms, {price}"
