"""`embedmill webhooks …`: where events of jobs and batches are sent, and what became of them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import typer

from cli.commands.options import ApiKeyOption, JsonOption, LimitOption, UrlOption, YesOption, id_check

app = typer.Typer(help="Send events of jobs and batches to a URL.", no_args_is_help=True)

EndpointId = Annotated[
    str,
    typer.Argument(metavar="ID", help="we_…", callback=id_check("endpoint", "we_", "embedmill webhooks list")),
]
EventId = Annotated[
    str | None,
    typer.Argument(metavar="[EVENT]", help="evt_…, as `embedmill webhooks deliveries` lists them."),
]


@app.command()
def create(
    target: Annotated[str, typer.Argument(metavar="RECEIVER", help="The https:// URL that receives the events.")],
    name: Annotated[str, typer.Option(help="A note for people.")] = "",
    event: Annotated[
        list[str] | None, typer.Option("--event", help="A type, e.g. batch.completed; repeatable. Default: all.")
    ] = None,
    as_json: JsonOption = False,
    url: UrlOption = None,
    api_key: ApiKeyOption = None,
) -> None:
    """Add an endpoint and print the secret that its deliveries are signed with: it is shown this once."""
    import msgspec

    from cli.client.api_client import connect
    from cli.client.webhooks_client import Webhooks
    from cli.output.terminal import err, out, print_json

    with connect(url, api_key) as client:
        webhooks = Webhooks(client)
        made = webhooks.create(target, name or target[:100], event or webhooks.event_types())
    if as_json:
        print_json(msgspec.json.encode(made))
        return
    err.print(f"{made.id} receives {', '.join(made.event_types)}; its secret, not shown again:", markup=False)
    out.print(made.signing_secret or "", markup=False)


@app.command("list")
def list_(
    limit: LimitOption = 20, as_json: JsonOption = False, url: UrlOption = None, api_key: ApiKeyOption = None
) -> None:
    """List endpoints, newest first."""
    from cli.client.api_client import connect
    from cli.client.webhooks_client import WEBHOOKS, Webhooks
    from cli.output.terminal import out, print_json, print_more, table

    with connect(url, api_key) as client:
        if as_json:
            print_json(client.json(WEBHOOKS, {"limit": limit}))
            return
        page = Webhooks(client).page(limit=limit)
    rows = [
        [
            each.id,
            f"disabled: {each.disabled_reason or 'no reason is known'}" if each.disabled_at else "active",
            each.name,
            each.url,
            ", ".join(each.event_types),
        ]
        for each in page.data
    ]
    out.print(table("endpoint", "state", "name", "receiver", "events", rows=rows))
    print_more(page.has_more, limit)


@app.command()
def show(endpoint_id: EndpointId, url: UrlOption = None, api_key: ApiKeyOption = None) -> None:
    """Print the endpoint object as JSON."""
    from cli.client.api_client import connect
    from cli.client.webhooks_client import WEBHOOKS
    from cli.output.terminal import print_json

    with connect(url, api_key) as client:
        print_json(client.json(f"{WEBHOOKS}/{endpoint_id}"))


@app.command()
def delete(
    endpoint_id: EndpointId, yes: YesOption = False, url: UrlOption = None, api_key: ApiKeyOption = None
) -> None:
    """Remove an endpoint and its deliveries."""
    from cli.client.api_client import connect
    from cli.client.webhooks_client import Webhooks
    from cli.output.terminal import confirm, out

    if not yes:
        confirm(f"Remove {endpoint_id} and its deliveries for good?")
    with connect(url, api_key) as client:
        Webhooks(client).delete(endpoint_id)
    out.print(f"{endpoint_id} is removed", markup=False)


@app.command()
def rotate(
    endpoint_id: EndpointId,
    keep_old: Annotated[
        bool, typer.Option("--keep-old", help="For 24 hours, sign with the old secret too, so that none is lost.")
    ] = False,
    url: UrlOption = None,
    api_key: ApiKeyOption = None,
) -> None:
    """Make a new secret for an endpoint and print it: it is shown this once."""
    from cli.client.api_client import connect
    from cli.client.webhooks_client import Webhooks
    from cli.output.terminal import err, out

    with connect(url, api_key) as client:
        rotated = Webhooks(client).rotate(endpoint_id, keep_old=keep_old)
    old = "works for another 24 hours" if keep_old else "is no longer used"
    err.print(f"the old secret of {rotated.id} {old}; the new one, not shown again:", markup=False)
    out.print(rotated.signing_secret or "", markup=False)


@app.command()
def test(
    endpoint_id: EndpointId,
    event: Annotated[str, typer.Option("--event", help="The type of the event.")] = "batch.completed",
    url: UrlOption = None,
    api_key: ApiKeyOption = None,
) -> None:
    """Send an event that has not happened, and say what the receiver answers. Exit code 1: not a 2xx."""
    from cli.client.api_client import connect
    from cli.client.webhooks_client import Webhooks
    from cli.errors import CliError, Failure
    from cli.output.terminal import out

    with connect(url, api_key) as client:
        answer = Webhooks(client).test(endpoint_id, event)
    status = f"HTTP {answer.status_code}" if answer.status_code else "nothing"
    if not answer.success:
        raise CliError(f"the receiver answered {status}", "look at its log", failure=Failure.SERVER)
    out.print(f"{answer.event_type}: the receiver answered {status}", markup=False)


@app.command()
def deliveries(
    endpoint_id: EndpointId,
    state: Annotated[str | None, typer.Option(help="Only pending, delivered or dead ones.")] = None,
    limit: LimitOption = 20,
    as_json: JsonOption = False,
    url: UrlOption = None,
    api_key: ApiKeyOption = None,
) -> None:
    """List what was sent to an endpoint and what is still to be sent, newest first."""
    from cli.client.api_client import connect
    from cli.client.webhooks_client import WEBHOOKS, Webhooks
    from cli.output.terminal import out, print_json, print_more, table

    with connect(url, api_key) as client:
        if as_json:
            print_json(client.json(f"{WEBHOOKS}/{endpoint_id}/deliveries", {"state": state, "limit": limit}))
            return
        page = Webhooks(client).deliveries(endpoint_id, state=state, limit=limit)
    rows = [
        [
            each.id,
            each.type,
            each.state,
            str(each.attempts),
            f"HTTP {each.last_status}" if each.last_status else each.last_error or "",
            datetime.fromtimestamp(each.next_attempt_at).strftime("%Y-%m-%d %H:%M:%S") if each.next_attempt_at else "",
        ]
        for each in page.data
    ]
    out.print(
        table("event", "type", "state", "attempts", "last answer", "next attempt", rows=rows, right=("attempts",))
    )
    print_more(page.has_more, limit)


@app.command()
def replay(
    endpoint_id: EndpointId,
    event_id: EventId = None,
    all_dead: Annotated[bool, typer.Option("--all-dead", help="Every delivery that was given up.")] = False,
    url: UrlOption = None,
    api_key: ApiKeyOption = None,
) -> None:
    """Send an event once more, with the id that it had; receivers tell by it that they know it."""
    from cli.client.api_client import connect
    from cli.client.webhooks_client import Webhooks
    from cli.errors import UsageError
    from cli.output.terminal import out

    if (event_id is None) != all_dead:
        raise UsageError("nothing says what to send again", "name one event, or give --all-dead")
    if event_id is not None:
        id_check("event", "evt_", f"embedmill webhooks deliveries {endpoint_id}")(event_id)
    with connect(url, api_key) as client:
        webhooks = Webhooks(client)
        # All of them first: a delivery that is replayed leaves the list that is being read.
        events = [each.id for each in webhooks.all_deliveries(endpoint_id, state="dead")] if all_dead else []
        for each in [*events, *([event_id] if event_id is not None else [])]:
            webhooks.replay(endpoint_id, each)
            out.print(f"{each} is sent again", markup=False)
    if all_dead and not events:
        out.print("no delivery was given up", markup=False)
