"""Failpoints: named points in the code at which a test makes a process die, freeze, fail or stall. Off by default.

EMBEDMILL_FAILPOINTS is a list of rules, separated by semicolons: a name, an action, and options.

    after_claim=kill,times=1,shared=/tmp/tokens; before_upstream=sleep,seconds=0.5,probability=0.1,seed=7

kill: SIGKILL to this process, as by `kill -9` or the kernel out of memory; stop: SIGSTOP, until somebody continues it;
raise: a Failpoint error, which no code expects; sleep: the process does nothing for `seconds`, nor do its heartbeats.

skip=N passes the first N times; times=N fires at most N times, in this process or, with shared=FOLDER, in all that name
the folder (one file in it for each firing); probability=P fires by chance, the same one for the same `seed`.
"""

from __future__ import annotations

import os
import random
import signal
import time
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal, get_args

from models.errors import ConfigError, EmbedmillError

Action = Literal["kill", "stop", "raise", "sleep"]
Place = Literal[
    "after_job_insert",  # in submit's transaction, the job's row and its shard written
    "after_accept_commit",  # the job is durable, the caller has no answer
    "after_publish",  # the broker has the rings
    "after_claim",
    "before_upstream",  # one call is about to be sent
    "after_upstream_before_commit",  # a paid answer is in memory alone
    "mid_commit",  # everything about a result is written and nothing is committed
    "after_commit",  # results are kept, and their calls are still noted as under way
    "after_commit_before_ack",  # the shard's work is kept, its message is still in the broker
    "during_finalize",  # the last shard is closed, the job's end is not yet written
    "after_webhook_send",  # the receiver has the event, and nobody knows that yet
    "during_spool_write",  # a result is half way to the disk
    "after_output_part",  # bytes of a batch's output are stored, and no row says so
    "after_output_progress",  # a part of the output belongs to the batch, the next is not begun
    "during_output_end",  # the files of a batch and its end are written and not committed
    "mid_ingest",  # shards of a file are written and not committed
    "after_ingest_commit",  # shards of a file are kept, and the rest of it is not read yet
    "during_validation",  # a part of a batch's file was read
    "during_validation_end",  # what a validation found is written and not committed
    "after_part_insert",  # a part of a file has a row, and no bytes
    "after_part_write",  # all bytes of a part are in the object store, and its row does not say so
    "during_file_commit",  # in the transaction that makes parts a file, all rows are written
    "after_file_commit",  # the file is durable, the caller has no answer
    "during_file_purge",  # bytes of parts are removed, their rows are not
    "during_migration",  # tables are changed and not committed
]


class Failpoint(EmbedmillError):
    """Raised by a failpoint whose action is to raise."""

    code = "failpoint"


@dataclass(slots=True)
class Rule:
    """The action at one failpoint, and how often it happens."""

    place: str
    action: str
    times: int | None = None
    skip: int = 0
    probability: float = 1.0
    seed: int = 0
    seconds: float = 1.0
    shared: str = ""
    _chance: random.Random = field(init=False)
    _fired: int = 0

    def __post_init__(self) -> None:
        self._chance = random.Random(f"{self.seed}/{self.place}")

    def fires(self) -> bool:
        """True when the rule applies to this hit."""
        if self.skip > 0:
            self.skip -= 1
            return False
        if self._chance.random() >= self.probability:
            return False
        if self.times is None:
            return True
        return self._takes_token() if self.shared else self._counts()

    def _counts(self) -> bool:
        self._fired += 1
        return self._fired <= (self.times or 0)

    def _takes_token(self) -> bool:
        """Claim one firing among all processes: only one process can create the file."""
        for number in range(self.times or 0):
            try:
                os.close(os.open(Path(self.shared) / f"{self.place}.{number}", os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                continue
            return True
        return False


_rules: dict[str, list[Rule]] = {}


def hit(place: Place) -> None:
    """Apply the rules of this failpoint; nearly always there are none. Raises Failpoint where that is the action."""
    if _rules:
        _act(place)


def arm(text: str) -> None:
    """Read the rules; with an empty text there are none. Raises ConfigError."""
    _rules.clear()
    for part in text.split(";"):
        if part.strip():
            rule = _parse(part.strip())
            _rules.setdefault(rule.place, []).append(rule)


def _act(place: str) -> None:
    for rule in _rules.get(place, ()):
        if not rule.fires():
            continue
        if rule.action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif rule.action == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        elif rule.action == "sleep":
            time.sleep(rule.seconds)
        else:
            raise Failpoint(f"failpoint {place}")


def _parse(text: str) -> Rule:
    place, _, rest = text.partition("=")
    action, *options = [word.strip() for word in rest.split(",")]
    if place not in get_args(Place):
        raise _wrong(f"{place!r} is no failpoint; there are {', '.join(get_args(Place))}")
    if action not in get_args(Action):
        raise _wrong(f"{action!r} is no action; there are {', '.join(get_args(Action))}")
    kinds = {each.name: each.type for each in fields(Rule) if each.init and each.name not in ("place", "action")}
    values: dict[str, str | int | float] = {}
    for option in options:
        name, _, value = option.partition("=")
        if name not in kinds:
            raise _wrong(f"{name!r} is no option; there are {', '.join(kinds)}")
        try:
            read = str if name == "shared" else float if kinds[name] == "float" else int
            values[name] = read(value)
        except ValueError:
            raise _wrong(f"{option!r} is not a number") from None
    return Rule(place, action, **values)  # type: ignore[arg-type]


def _wrong(why: str) -> ConfigError:
    return ConfigError(f"EMBEDMILL_FAILPOINTS: {why}", param="EMBEDMILL_FAILPOINTS")


__all__ = ["Failpoint", "arm", "hit"]
