"""What a kind of provider takes and does, as data.

Adapters build requests by it; the warnings of answers, `embedmill providers` and docs/providers.md are made of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from models.embedding import Limits

Pair = tuple[str, object]
"""A field of a request's body, and its value."""


@dataclass(frozen=True, slots=True)
class MappedField:
    """A field of the body that takes a value of ours in the provider's words."""

    name: str
    values: Mapping[str, object]  # ours → the provider's; a value that is not here cannot be honoured
    default: object = None  # sent when the caller says nothing; None: the field is left out then
    is_passed_on: bool = False  # to another provider, whose models may not need it

    def of(self, value: str | None) -> object:
        """The provider's word for our value; its default where the caller says nothing, or what it has no word for."""
        return self.default if value is None else self.values.get(value, self.default)


@dataclass(frozen=True, slots=True)
class Setting:
    """A key that the account's section takes beside those of every kind."""

    about: str
    default: str | None = None  # None: it must be given, unless `is_optional`
    is_optional: bool = False
    is_secret: bool = False  # env:NAME or file:PATH, never the value
    variables: tuple[str, ...] = ()  # environment variables in which it is commonly kept


@dataclass(frozen=True, slots=True)
class Traits:
    """One kind. Texts in `base_url` and `path` in braces are settings of the account, or `{model}`."""

    kind: str
    title: str
    limits: Limits
    base_url: str = ""  # the vendor's; "": the operator names it
    path: str = "/embeddings"
    key_variables: tuple[str, ...] = ()  # environment variables in which this vendor's key is commonly kept
    key_header: str = "authorization"  # another name: the key alone is its value, without "Bearer"
    headers: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Setting] = field(default_factory=dict)
    accepts_tokens: bool = False
    takes_bare_string: bool = False  # `input` may be a text, not a list
    width_field: str | None = None  # for vectors narrower than the native width; None: it has none
    base64: Pair | None = None  # asks for base64 float32 little-endian; None: it gives floats only
    floats: Pair | None = None  # asks for floats where leaving the field out does not
    input_type: MappedField | None = None
    truncate: MappedField | None = None
    user_field: str | None = None
    body: Mapping[str, object] = field(default_factory=dict)  # fields of each request
    order: Literal["index", "position"] = "index"  # how a reply tells which vector belongs to which input
    usage: Literal["tokens", "none", "characters"] = "tokens"  # what a reply's usage counts
    cuts_silently: bool = False  # too long inputs are cut even where the caller forbids it
    base_url_of_key: Mapping[str, str] = field(default_factory=dict)  # by the beginning of the key
    detail_is_message: bool = False  # an error's `detail` text is the vendor's own words
    narrow_is_unit: bool = True  # False: narrower vectors come unnormalised, and are renormalised here
    can_embed: bool = True
    is_signed: bool = False  # the finished request is signed with the time
    source: str = ""  # of the facts, with a date
