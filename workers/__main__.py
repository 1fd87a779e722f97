"""`python -m workers`: one Celery worker, its child processes, and nothing of Celery's that we do not use."""

from __future__ import annotations

import argparse
import os
import warnings

from celery.platforms import SecurityWarning


def main() -> None:
    parser = argparse.ArgumentParser(prog="workers", description=__doc__)
    parser.add_argument("--concurrency", type=int, default=2, help="child processes; each works on one shard at a time")
    concurrency = parser.parse_args().concurrency
    # Celery lets these win over the broker that is configured here, and they may belong to another program.
    for name in [name for name in os.environ if name.startswith("CELERY_")]:
        del os.environ[name]
    # It warns of root because pickled messages carry code; ours are JSON.
    warnings.filterwarnings("ignore", category=SecurityWarning)
    from workers.app import app

    app.worker_main(
        [
            "--quiet",
            "worker",
            "--pool=prefork",
            f"--concurrency={concurrency}",
            "--without-gossip",
            "--without-mingle",
            "--without-heartbeat",
            "--loglevel=WARNING",
        ]
    )


if __name__ == "__main__":
    main()
