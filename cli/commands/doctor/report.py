"""Runs every check and prints the report: a line for each finding, with what to do."""

from __future__ import annotations

import os

import msgspec

from cli.commands.doctor.accounts import tried_accounts
from cli.commands.doctor.api_server import server
from cli.commands.doctor.brokers import broker
from cli.commands.doctor.check_runner import guarded, guarded_all
from cli.commands.doctor.finding import Finding
from cli.commands.doctor.machine import disk, installation, machine
from cli.commands.doctor.models import drift_monitor, local_models, released
from cli.commands.doctor.outages import outages
from cli.commands.doctor.processes import running
from cli.commands.doctor.quotas import quotas
from cli.commands.doctor.storage import database, pepper
from cli.config_file import with_config
from cli.data_dir import DataDir
from cli.errors import ExitCode
from cli.output.terminal import out, print_json, table
from engine.config import config_file
from engine.config.settings import Settings
from engine.observability.telemetry import configure_logging
from models.errors import EmbedmillError

STATUS_STYLE = {"ok": "green", "warn": "yellow", "fail": "red"}


def doctor(
    *, url: str | None, api_key: str | None, as_json: bool, release: str | None = None, providers: bool = False
) -> ExitCode:
    """Run every check and print one line each. FAILED when anything is broken, not when something is merely absent."""
    configure_logging("WARNING", "text")  # what the parts log would be between the lines of the report
    place = DataDir.from_environment()
    settings: Settings | None = None
    findings = [*installation(), disk(place), *machine(place)]
    try:
        settings = Settings.from_environment(with_config(os.environ))
        aliases = config_file.load(settings.config)
    except EmbedmillError as error:
        findings.append(Finding("configuration", "fail", error.message, "correct it; .env.example lists every setting"))
    else:
        source = settings.config or "the built-in default"
        findings.append(Finding("configuration", "ok", f"{source}: {', '.join(sorted(aliases))}"))
        if release is not None:
            findings.append(guarded("release", lambda: released(settings, release)))
        findings += [guarded("database", lambda: database(settings)), guarded("pepper", lambda: pepper(settings))]
        if next(each for each in findings if each.check == "database").status == "ok":
            findings += guarded_all("processes", lambda: running(settings))
            findings += guarded_all("outages", lambda: outages(settings))
        findings.append(guarded("broker", lambda: broker(settings)))
        findings.append(guarded("canaries", lambda: drift_monitor(settings, aliases)))
        findings.append(guarded("quotas", lambda: quotas(settings, aliases)))
        findings += local_models(aliases)
        findings += tried_accounts(settings, aliases, tried=providers)
    findings.append(guarded("api", lambda: server(url, api_key, place, settings)))
    if as_json:
        print_json(msgspec.json.encode(findings))
    else:
        rows = [[each.status, each.check, each.detail + (f"  → {each.fix}" if each.fix else "")] for each in findings]
        made = table("", "check", "finding", rows=rows)
        for row, each in zip(made.rows, findings, strict=True):
            row.style = STATUS_STYLE[each.status] if each.status != "ok" else None
        out.print(made)
    return ExitCode.FAILED if any(each.status == "fail" for each in findings) else ExitCode.DONE
