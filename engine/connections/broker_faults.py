"""Causes of Redis and RabbitMQ errors, and advice: a table by the server's codes.

An error reply of Redis begins with a code in capitals; py-amqp names its classes after the reply codes of AMQP 0-9-1.
"""

from __future__ import annotations

from engine.connections.connection_faults import BROKER, REDIS, ConnectionFault, Names, chain_of, connection_fault
from models.errors import BrokerUnavailable

CREDENTIAL = "correct user and password in {setting}"
OF_REDIS = {
    "NOAUTH": ("it wants a password", "write redis://:PASSWORD@host:6379/0 into {setting}"),
    "WRONGPASS": ("it refuses the user or the password", CREDENTIAL),
    "NOPERM": ("its user may not do this", "give the user of {setting} all commands on all keys (ACL SETUSER)"),
    "LOADING": ("it is loading its data", "wait: it answers by itself once it has"),
    "READONLY": ("it is a replica and refuses writes", "name the primary in {setting}"),
    "MASTERDOWN": ("it is a replica that has lost its primary", "name the primary in {setting}"),
    "OOM": ("its memory is used up", "raise its maxmemory, or remove what others keep in it"),
    "MISCONF": (
        "it cannot save its data, and refuses writes",
        "see its log and its disk, then let it save again (BGSAVE)",
    ),
    "NOREPLICAS": ("it has too few replicas, and refuses writes", "start them, or lower its min-replicas-to-write"),
    "WRONGTYPE": ("another program uses our keys", "set EMBEDMILL_NAMESPACE to a name of our own"),
    "MOVED": ("it is a cluster", "name a server that is none in {setting}"),
    "CROSSSLOT": ("it is a cluster", "name a server that is none in {setting}"),
    "CLUSTERDOWN": ("it is a cluster", "name a server that is none in {setting}"),
    "ERR": ("it refuses a command", "see its log, and whether it is a Redis or Valkey of version 6.2 or later"),
}
# What redis-py raises without the server's word.
OF_REDIS_CLASSES = {
    "AuthenticationError": "WRONGPASS",
    "BusyLoadingError": "LOADING",
    "NoPermissionError": "NOPERM",
    "OutOfMemoryError": "OOM",
    "ReadOnlyError": "READONLY",
    "MasterDownError": "MASTERDOWN",
    "ClusterDownError": "CLUSTERDOWN",
}
OF_NO_DATABASE = ("it has no database of that number", "end {setting} with a lower one, as in redis://host:6379/0")
OF_AMQP_CLASSES = {
    "AccessRefused": ("it refuses the user or the password", CREDENTIAL),
    "NotAllowed": (
        "it has no such virtual host, or not for this user",
        "correct what follows the last slash in {setting}",
    ),
    "PreconditionFailed": ("our queue exists there with other settings", "delete that queue: it holds hints only"),
    "ResourceLocked": ("another connection has our queue for itself", "end the program that has declared it"),
    "ResourceError": ("it is short of memory or disk", "see its alarms (rabbitmq-diagnostics alarms)"),
    "ConnectionForced": ("an operator or a shutdown closed the connection", "see its log"),
}
UNKNOWN = ConnectionFault("it cannot be used", "`embedmill doctor` looks at it")


def broker_fault(error: BaseException, names: Names) -> ConnectionFault:
    """What the error says about the service."""
    for each in chain_of(error):
        found = _of_redis(each) or OF_AMQP_CLASSES.get(type(each).__name__)
        if found is not None:
            return ConnectionFault(found[0], found[1].format(setting=names.setting))
    if (fault := connection_fault(error, names)) is not None:
        return fault
    if any(type(each).__name__ == "TimeoutError" for each in chain_of(error)):  # redis-py's own
        return ConnectionFault(
            "it accepts connections and does not answer", "is it frozen, or another program? see its log"
        )
    return UNKNOWN


def unavailable(error: BaseException, names: Names) -> BrokerUnavailable:
    """The error of ours for logs: cause and advice."""
    fault = broker_fault(error, names)
    return BrokerUnavailable(fault.cause, advice=fault.advice)


def names_of(url: str) -> Names:
    """The names of the service of this URL in messages."""
    return BROKER if url.startswith("amqp") else REDIS


def _of_redis(error: BaseException) -> tuple[str, str] | None:
    if not type(error).__module__.startswith("redis."):
        return None
    word = getattr(error, "status_code", None) or next(iter(str(error).split()), "")
    if word not in OF_REDIS:
        names = (each.__name__ for each in type(error).__mro__)
        word = next((OF_REDIS_CLASSES[name] for name in names if name in OF_REDIS_CLASSES), "")
    if not word and type(error).__name__ == "ResponseError":
        word = "ERR"
    if word == "ERR" and "db index" in str(error).lower():  # the one refusal of a URL that has no code of its own
        return OF_NO_DATABASE
    return OF_REDIS.get(word)
