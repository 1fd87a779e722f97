"""Ask a public database about known vulnerabilities of every locked package: `python .ci/audit.py LOCK_FILE`.

Exit codes: 0 none is known, or nobody could be asked (said aloud); 1 at least one is known. pip-audit (Apache-2.0) runs
from an environment of its own, so that it never decides what the project's environment holds.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ANSWER_S = 300


def main(lock_file: str) -> int:
    with tempfile.TemporaryDirectory(prefix="embedmill-audit-") as folder:
        venv.create(folder, with_pip=True)
        python = str(Path(folder, "bin", "python"))
        installed = subprocess.run(
            [python, "-m", "pip", "install", "--quiet", "pip-audit"], capture_output=True, text=True, check=False
        )
        if installed.returncode:
            return not_checked(installed.stderr)
        command = [python, "-m", "pip_audit", "--disable-pip", "--require-hashes", "--progress-spinner", "off"]
        try:
            ran = subprocess.run(
                [*command, "--format", "json", "--requirement", lock_file],
                capture_output=True,
                text=True,
                check=False,
                timeout=ANSWER_S,
            )
        except subprocess.TimeoutExpired:
            return not_checked(f"no answer within {ANSWER_S} s")
    try:
        packages = json.loads(ran.stdout)["dependencies"]
    except (ValueError, KeyError):
        return not_checked(ran.stderr)
    found = [(package, each) for package in packages for each in package.get("vulns", ())]
    for package, each in found:
        fixed = ", ".join(each["fix_versions"]) or "no version yet"
        print(f"{package['name']} {package['version']}: {each['id']}, mended in {fixed}")
    print(f"{len(packages)} packages of {lock_file} checked, {len(found)} known vulnerabilities")
    return 1 if found else 0


def not_checked(reason: str) -> int:
    last_line = (reason.strip().splitlines() or ["no reason given"])[-1]
    print(f"NOT CHECKED: the vulnerability database could not be asked ({last_line[:200]})")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
