"""What endpoints need of webhooks: the process's sender, and what callers may subscribe to."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from fastapi import Request

from engine.webhooks.sample_events import SampleEvents
from engine.webhooks.sender import WebhookSender
from engine.webhooks.targets import TargetPolicy
from models.errors import InvalidInput
from models.webhook import EventType


def target_policy_of(request: Request) -> TargetPolicy:
    """What URLs of receivers may be. Check each with it before it is stored."""
    sender: WebhookSender = request.scope["app"].state.webhooks
    return sender.policy


def sample_events_of(request: Request) -> SampleEvents:
    """What sends the test events of this process."""
    samples: SampleEvents = request.scope["app"].state.sample_events
    return samples


def event_types_of(names: Sequence[str], *, among: Collection[EventType] = tuple(EventType)) -> list[EventType]:
    """The event types of a list of names, each once. Raises InvalidInput that names the first unknown one."""
    if not names:
        raise InvalidInput(
            f"Invalid 'event_types': the list is empty. Send at least one of {', '.join(among)}.",
            param="event_types",
            code="empty_array",
        )
    for index, name in enumerate(names):
        if name not in among:
            raise InvalidInput(
                f"Invalid value: '{name[:100]}'. Supported values are: {', '.join(among)}.",
                param=f"event_types[{index}]",
                code="invalid_value",
            )
    return [EventType(name) for name in dict.fromkeys(names)]
