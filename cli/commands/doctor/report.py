"""Runs every check and prints the report: a line for each finding, with what to do."""

from __future__ import annotations

import os

import msgspec

from cli.commands.doctor.accounts import check_accounts
from cli.commands.doctor.api_server import server
from cli.commands.doctor.brokers import broker
from cli.commands.doctor.check_runner import run_check, run_checks
from cli.commands.doctor.finding import Finding
from cli.commands.doctor.machine import disk, installation, machine
from cli.commands.doctor.models import check_drift, check_local_models, check_spaces, release_quarantine
from cli.commands.doctor.outages import outages
from cli.commands.doctor.processes import running
from cli.commands.doctor.quotas import quotas
from cli.commands.doctor.storage import database, objects, pepper
from cli.config_file import with_config
from cli.data_dir import DataDir
from cli.errors import ExitCode
from cli.output.terminal import out, print_json, table
from engine.config import config_file
from engine.config.settings import Settings
from engine.observability.telemetry import configure_logging
from models.errors import EmbedmillError

SEE_DATABASE = "see what the database's line says"
STATUS_STYLE = {"ok": "green", "warn": "yellow", "fail": "red"}


def diagnose(
    *, url: str | None, api_key: str | None, as_json: bool, release: str | None = None, providers: bool = False
) -> ExitCode:
    """Run every check and print one line each. FAILED when anything is broken, not when something is merely absent."""
    configure_logging("WARNING", "text")  # log lines would appear between those of the report
    data_dir = DataDir.from_environment()
    settings: Settings | None = None
    findings = [*installation(), disk(data_dir), *machine(data_dir)]
    try:
        settings = Settings.from_environment(with_config(os.environ))
        aliases = config_file.load(settings.config, data_dir=settings.data_dir)
    except EmbedmillError as error:
        findings.append(Finding("configuration", "fail", error.message, "correct it; .env.example lists every setting"))
    else:
        source = settings.config or "the built-in default"
        findings.append(Finding("configuration", "ok", f"{source}: {', '.join(sorted(aliases))}"))
        if release is not None:
            findings.append(run_check("release", lambda: release_quarantine(settings, release)))
        findings += [run_check("database", lambda: database(settings)), run_check("pepper", lambda: pepper(settings))]
        findings.append(run_check("objects", lambda: objects(settings)))
        if next(finding for finding in findings if finding.check == "database").status == "ok":
            findings += run_checks("processes", lambda: running(settings), fix=SEE_DATABASE)
            findings += run_checks("outages", lambda: outages(settings, aliases), fix=SEE_DATABASE)
        findings.append(run_check("broker", lambda: broker(settings)))
        findings.append(run_check("drift", lambda: check_drift(settings, aliases)))
        findings += run_checks("spaces", lambda: check_spaces(settings, aliases), fix=SEE_DATABASE)
        findings.append(run_check("quotas", lambda: quotas(settings, aliases)))
        findings += check_local_models(aliases)
        findings += check_accounts(settings, aliases, tried=providers)
    findings.append(run_check("api", lambda: server(url, api_key, data_dir, settings)))
    if as_json:
        print_json(msgspec.json.encode(findings))
    else:
        rows = [
            [finding.status, finding.check, finding.detail + (f"  → {finding.fix}" if finding.fix else "")]
            for finding in findings
        ]
        report_table = table("", "check", "finding", rows=rows)
        for row, finding in zip(report_table.rows, findings, strict=True):
            row.style = STATUS_STYLE[finding.status] if finding.status != "ok" else None
        out.print(report_table)
    return ExitCode.FAILED if any(finding.status == "fail" for finding in findings) else ExitCode.DONE
