"""The tour that `make demo` gives: start everything, embed real texts, call it as OpenAI is called, search, stop.

It runs in a data directory of its own and on a free port, so that an embedmill in daily use does not notice.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from openai import DefaultHttpxClient, OpenAI
from rich.console import Console
from search import MODEL, TextIndex, embed_words, print_found

from cli.up.child_process import dies_with_parent

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
TEXTS = HERE / "texts.jsonl.gz"
VECTORS = HERE / "out" / "vectors.npy"
QUERIES = ["send http requests", "plot charts", "talk to a PostgreSQL database"]
READY_S = 60.0
STOP_S = 75.0

console = Console(highlight=False)


class DemoFailed(Exception):  # reads as what it says
    """Ends the tour with one readable reason."""


def main() -> int:
    # A polite end must also run the code that stops what was started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("error: the demo was told to stop"))
    started = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix="embedmill-demo-") as folder:
            environment = clean_environment(Path(folder) / "data")
            with running_stack(environment) as url:
                tour(url, environment)
    except KeyboardInterrupt:
        console.print("error: interrupted", style="red")
        return 1
    except (DemoFailed, httpx.HTTPError, OSError, ValueError) as error:
        console.print(f"error: {error}", markup=False, style="red")
        return 1
    console.print(f"All of it is stopped again. {time.monotonic() - started:.0f} s; next: [bold]make up[/]")
    return 0


def tour(url: str, environment: dict[str, str]) -> None:
    key = Path(environment["EMBEDMILL_DATA_DIR"], "key").read_text().strip()

    step(f"Embed the texts in {TEXTS.relative_to(ROOT)}, as one bulk job")
    VECTORS.parent.mkdir(exist_ok=True)
    cli("embed", str(TEXTS), "--model", MODEL, "--out", str(VECTORS), environment=environment)

    step("The job object (GET /v1/embeddings/jobs/{id})")
    jobs = httpx.get(f"{url}/v1/embeddings/jobs", headers={"authorization": f"Bearer {key}"}, trust_env=False)
    cli("jobs", "show", jobs.raise_for_status().json()["data"][0]["id"], environment=environment)

    step("One sync call through the openai package")
    with OpenAI(base_url=f"{url}/v1", api_key=key, http_client=DefaultHttpxClient(trust_env=False)) as client:
        reply = client.embeddings.create(model=MODEL, input="The quick brown fox")
        numbers = reply.data[0].embedding
        first = ", ".join(f"{number:.4f}" for number in numbers[:3])
        console.print(f"{reply.model}: {reply.usage.total_tokens} tokens, {len(numbers)} numbers: {first}, …\n")

        step(f"Search {VECTORS.relative_to(ROOT)} by meaning")
        index = TextIndex(TEXTS, VECTORS)
        for words, vector in zip(QUERIES, embed_words(client, QUERIES), strict=True):
            print_found(console, words, index.search(vector))


def step(title: str) -> None:
    console.rule(f"[bold]{title}", align="left")


def clean_environment(data_dir: Path) -> dict[str, str]:
    """Ours without the user's settings: the demo must not write into a database that happens to be configured."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("EMBEDMILL_")}
    return ours | {"EMBEDMILL_DATA_DIR": str(data_dir), "PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1"}


def cli(*arguments: str, environment: dict[str, str]) -> None:
    """Run `embedmill …` on our terminal. Raises DemoFailed when it ends badly."""
    done = subprocess.run([sys.executable, "-m", "cli", *arguments], env=environment, check=False)
    if done.returncode != 0:
        raise DemoFailed(f"`embedmill {arguments[0]}` ended with exit code {done.returncode}; its error line says why")
    console.print()


@contextmanager
def running_stack(environment: dict[str, str]) -> Iterator[str]:
    """`embedmill up` for as long as the block lasts; yields its URL once it is ready."""
    step("Start the stack: embedded Valkey, API, scheduler, two workers")
    data_dir = Path(environment["EMBEDMILL_DATA_DIR"])
    up = subprocess.Popen(
        [sys.executable, "-m", "cli", "up", "--port", "0", "--quiet", "--workers", "2"],
        env=environment,
        cwd=data_dir.parent,  # where no embedmill.toml of the user's lies
        stdout=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is for us; we stop it ourselves
        preexec_fn=dies_with_parent(),
    )
    try:
        started = time.monotonic()
        with console.status("starting"):
            url = wait_until_ready(up, data_dir)
        console.print(f"{url} is ready after {time.monotonic() - started:.1f} s\n")
        yield url
    except BaseException:
        show_last_lines(data_dir / "logs")
        raise
    finally:
        up.terminate()
        try:
            status = up.wait(STOP_S)
        except subprocess.TimeoutExpired:
            up.kill()  # its children die with it
            status = up.wait()
    if status != 0:
        raise DemoFailed(f"the stack ended with exit code {status}")


def wait_until_ready(up: subprocess.Popen[bytes], data_dir: Path) -> str:
    gives_up_at = time.monotonic() + READY_S
    while time.monotonic() < gives_up_at:
        if up.poll() is not None:
            raise DemoFailed(f"`embedmill up` ended with exit code {up.returncode} before it was ready")
        try:
            url = (data_dir / "url").read_text().strip()
            if httpx.get(f"{url}/readyz", timeout=2.0, trust_env=False).status_code == 200:
                return url
        except (FileNotFoundError, httpx.TransportError):
            pass
        time.sleep(0.1)
    raise DemoFailed(f"the stack was not ready within {READY_S:.0f} s")


def show_last_lines(log_dir: Path) -> None:
    for file in sorted(log_dir.glob("*.log")):
        if lines := file.read_text("utf-8", "replace").splitlines()[-5:]:
            console.print("\n".join([f"--- {file.name}", *lines]), markup=False, style="dim")


if __name__ == "__main__":
    sys.exit(main())
