"""openai-python's own tests of files, batches, uploads, webhooks and embeddings, against a running server."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from tests.clients.environment import Environment, cache_folder

VERSION = version("openai")
MODULES = (
    "api_resources/test_files.py",
    "api_resources/test_batches.py",
    "api_resources/test_uploads.py",
    "api_resources/uploads",
    "api_resources/test_webhooks.py",
    "api_resources/webhooks",
    "api_resources/test_embeddings.py",
    "lib/test_webhooks.py",
    "lib/test_webhook_signature.py",
    "lib/test_webhook_endpoint_with_secret.py",
)
NEEDS = ("pytest", "pytest-asyncio", "pytest-xdist", "inline-snapshot", "rich", "trio", "botocore", "nest_asyncio")
# Why an answer that fails a test is right: the tests were written for a mock server that takes anything.
REASONS = (
    (r"404 - No (such|batch|webhook)", "it names an object that does not exist: 404 is right"),
    (r"Invalid 'limit'", "its limit of 0 is outside of the documented range"),
    (r"'/v1/responses'", "it wants a batch for /v1/responses; only /v1/embeddings is served here"),
    (r"Invalid 'bytes'", "it declares an upload of 0 bytes"),
    (r"Invalid 'md5'", "its md5 is the word `md5`"),
    (r"Invalid 'url'", "its URL is `https://`, without a host"),
    (r"Invalid 'after'", "its `after` is the id of nothing"),
    (r"Invalid 'purpose'", "it filters by the purpose `purpose`"),
    (
        "APIResponseValidationError",
        "the strict client of the SDK checks the answer before it decodes the base64 that it has asked for itself",
    ),
)


@dataclass(slots=True)
class Outcome:
    """Counts of one module, and its failures: message -> names of the tests."""

    passed: int = 0
    skipped: int = 0
    failed: int = 0
    failures: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))


def reason_of(message: str) -> str | None:
    """Why the answer is right; None: nobody knows, and it may be a fault of ours."""
    return next((reason for pattern, reason in REASONS if re.search(pattern, message)), None)


def environment() -> Environment:
    return Environment("openai-own-tests", [f"openai[aiohttp]=={VERSION}", *NEEDS])


def sources() -> Path:
    """The unpacked source distribution of the installed version."""
    folder = cache_folder() / f"openai-{VERSION}"
    if not (folder / "tests").is_dir():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "openai"]
        subprocess.run([*command, f"openai=={VERSION}", "--dest", folder.parent], check=True, timeout=300)
        with tarfile.open(folder.parent / f"openai-{VERSION}.tar.gz") as archive:
            archive.extractall(folder.parent, filter="data")
    return folder


def run(base_url: str) -> dict[str, Outcome]:
    """Outcomes by module. `base_url` ends in /v1 and takes the key that the tests have in them."""
    report = cache_folder() / "openai-own-tests.xml"
    report.unlink(missing_ok=True)
    done = environment().run(
        ["-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=line", f"--junitxml={report}"]
        + [f"tests/{module}" for module in MODULES],
        environment={"TEST_API_BASE_URL": base_url},
        folder=sources(),
        timeout_s=600,
    )
    assert report.exists(), done.stdout[-2000:] + done.stderr[-2000:]
    return _read(report)


def _read(report: Path) -> dict[str, Outcome]:
    outcomes: dict[str, Outcome] = defaultdict(Outcome)
    for case in ElementTree.parse(report).iter("testcase"):
        name = re.sub(r"\.Test\w+$", "", case.get("classname") or "").removeprefix("tests.")
        outcome = outcomes[name]
        fault = next((found for found in map(case.find, ("failure", "error")) if found is not None), None)
        if fault is not None:
            outcome.failed += 1
            message = re.sub(r"\s+", " ", fault.get("message") or "").replace("openai.", "", 1)[:160]
            outcome.failures[message].add(re.sub(r"\[.*", "", case.get("name") or ""))
        elif case.find("skipped") is not None:
            outcome.skipped += 1
        else:
            outcome.passed += 1
    return dict(sorted(outcomes.items()))
