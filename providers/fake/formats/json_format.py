"""The base of all formats but OpenAI's own: it applies a profile, and leaves the reply's body to its subclasses."""

from __future__ import annotations

import dataclasses
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import unquote

import numpy as np
import orjson

from models.embedding import Input, Matrix
from providers.base import UpstreamReply, UpstreamRequest
from providers.fake.formats.format import FakeCall
from providers.fake.formats.profile import FIXED, QUERY_WORDS, Profile
from providers.fake.formats.vendor_errors import VendorError
from providers.fake.rate_limit import Refusal, SlidingWindow, retry_headers
from providers.fake.replies import compressed, malformed_reply, with_defect
from providers.fake.script import Action
from providers.fake.vectors import fake_tokens

BYTES_PER_TOKEN = 4  # of the fake's tokenizer
_WHOLE_REPLIES = ("html", "empty", "not_json")


class JsonFormat(ABC):
    """One vendor. `oddities` switches what a vendor does only sometimes: see the format's own docstring."""

    headers: Mapping[str, str] = {"content-type": "application/json"}

    def __init__(self, profile: Profile, oddities: frozenset[str] = frozenset()) -> None:
        self.profile = profile
        self.oddities = oddities
        self.kind = profile.kind
        self.base_path = profile.base_path
        self._path = re.compile(profile.path)

    # --- What subclasses say ------------------------------------------------------------------------------------------

    def parse(self, document: dict[str, Any], model: str | None) -> FakeCall | UpstreamReply:
        """The call of a body whose fields are known. `model`: that of the path."""
        profile = self.profile
        inputs = self.inputs_of(document.get(profile.input_field))
        if inputs is None:
            return self.refuse(profile.errors.bad_value, field=profile.input_field)
        name = model or document.get("model")
        if not isinstance(name, str):
            return self.refuse(profile.errors.missing_field, field="model")
        return self.call(name, inputs, document, document)

    @abstractmethod
    def body(
        self, call: FakeCall, rows: Matrix, indexes: Sequence[int | None], tokens: Sequence[int] | None
    ) -> tuple[object, dict[str, str]]:
        """The reply's JSON, and headers of its own. `tokens` None: the reply counts none."""

    # --- Reading ------------------------------------------------------------------------------------------------------

    def admit(self, request: UpstreamRequest, path: str, api_key: str | None) -> UpstreamReply | None:
        """Refuse other paths, other methods and other keys."""
        errors = self.profile.errors
        if self._path.search(path) is None:
            return self.refuse(errors.bad_path)
        if request.method != "POST":
            return self.refuse(errors.bad_method)
        if api_key is not None and not self.has_key(request, api_key):
            return self.refuse(errors.bad_key, key=api_key[:0])
        return None

    def has_key(self, request: UpstreamRequest, api_key: str) -> bool:
        """True when the request carries the key."""
        credential = request.headers.get(self.profile.key_header)
        return credential == (f"Bearer {api_key}" if self.profile.key_header == "authorization" else api_key)

    def read(self, request: UpstreamRequest, path: str) -> FakeCall | UpstreamReply:
        """Check the fields of the body, then leave it to `parse`."""
        profile, errors = self.profile, self.profile.errors
        if profile.max_bytes is not None and len(request.body) > profile.max_bytes:
            return self.refuse(errors.too_many_bytes)
        try:
            document = orjson.loads(request.body)
        except orjson.JSONDecodeError:
            document = None
        if not isinstance(document, dict):
            return self.refuse(errors.bad_body)
        if profile.fields is not None and (unknown := sorted(document.keys() - profile.fields)):
            return self.refuse(errors.unknown_field, field=unknown[0])
        for name in profile.required:
            if document.get(name) is None:
                return self.refuse(errors.missing_field, field=name)
        for name, words in profile.words.items():
            if (value := document.get(name)) is not None and (not isinstance(value, str | bool) or value not in words):
                return self.refuse(errors.bad_value, field=name, value=value)
        found = self._path.search(path)
        model = found.groupdict().get("model") if found else None
        return self.parse(document, unquote(model) if model else None)

    def inputs_of(self, value: object) -> list[Input] | None:
        """The inputs in a field; None where it holds something else."""
        profile = self.profile
        if isinstance(value, str):
            return [value] if profile.takes_text else None
        if not isinstance(value, list):
            return None
        if profile.takes_tokens and value and all(type(item) is int for item in value):
            return [value]  # a flat array of token ids is one input
        is_input = [isinstance(item, str) or (profile.takes_tokens and _is_tokens(item)) for item in value]
        return value if all(is_input) else None

    def call(
        self,
        model: str,
        inputs: Sequence[Input],
        fields: Mapping[str, Any],
        document: object,
        *,
        cuts: bool | None = None,
    ) -> FakeCall:
        """The call, with what the profile's fields say. Inputs that are too long are cut where they shall be."""
        profile = self.profile
        width = fields.get(profile.width_field) if profile.width_field else None
        truncated: Sequence[int] = ()
        if cuts is None:
            word = fields.get(profile.cut_field) if profile.cut_field else None
            cuts = profile.cuts if word is None else word in profile.cut_words
        if cuts and (cap := self.max_input_tokens(model)) is not None:
            whole = inputs
            inputs = [cut(item, cap) for item in whole]
            truncated = [position for position, item in enumerate(whole) if len(item) != len(inputs[position])]
        is_unit = profile.unit_field is None or fields.get(profile.unit_field) is True
        return FakeCall(
            model,
            inputs,
            width if type(width) is int and width else None,
            fields.get(profile.encoding_field) if profile.encoding_field else None,
            is_query=bool(profile.purpose_field) and fields.get(profile.purpose_field or "") in QUERY_WORDS,
            truncated=truncated,
            scale=1.0 if is_unit else 3.0,
            document=document,
        )

    # --- Limits -------------------------------------------------------------------------------------------------------

    def max_inputs(self, model: str) -> int | None:
        """Inputs of one call to this model."""
        return self.profile.max_inputs

    def max_input_tokens(self, model: str) -> int | None:
        """Tokens of one input to this model."""
        return self.profile.max_input_tokens

    def over_limits(self, call: FakeCall, tokens: Sequence[int], width: int) -> UpstreamReply | None:
        """Empty inputs, then the number of inputs, the width, each input's tokens, and their sum."""
        profile, errors, inputs = self.profile, self.profile.errors, call.inputs
        vacant = next((position for position, item in enumerate(inputs) if not item), None)
        if not inputs or (vacant is not None and not profile.embeds_empty):
            return self.empty(vacant)
        if (limit := self.max_inputs(call.model)) is not None and len(inputs) > limit:
            return self.refuse(errors.too_many_inputs, count=len(inputs), cap=limit, model=call.model)
        if call.width is not None and profile.narrowing != "ignore":
            if call.model.endswith(FIXED):
                return self.refuse(errors.fixed_width, model=call.model, value=call.width, width=width)
            if not 1 <= call.width <= width:
                return self.refuse(errors.bad_width, model=call.model, value=call.width, width=width)
        longest = max(tokens)
        if (cap := self.max_input_tokens(call.model)) is not None and longest > cap:
            index = tokens.index(longest)
            return self.refuse(errors.too_long, count=longest, cap=cap, index=index, model=call.model)
        total = profile.call_tokens_of.get(call.model, profile.max_call_tokens)
        if total is not None and sum(tokens) > total:
            return self.refuse(errors.too_many_tokens, count=sum(tokens), cap=total, model=call.model)
        return None

    def empty(self, index: int | None) -> UpstreamReply | None:
        """The refusal of an empty input, or of none at all (None)."""
        return self.refuse(self.profile.errors.empty_input, index=index or 0)

    # --- Writing ------------------------------------------------------------------------------------------------------

    def width_of(self, call: FakeCall, width: int) -> int:
        """The width asked for, where the vendor narrows well; else the native one, which `rows_of` slices."""
        return call.width if call.width and self.profile.narrowing == "unit" else width

    def rows_of(self, call: FakeCall, rows: Matrix) -> Matrix:
        """Sliced, and of another length than 1, where the vendor gives such vectors."""
        if self.profile.narrowing == "slice" and call.width and call.width < rows.shape[1]:
            rows = np.ascontiguousarray(rows[:, : call.width])
        return rows if call.scale == 1.0 else rows * np.float32(call.scale)

    def write(self, call: FakeCall, rows: Matrix, tokens: Sequence[int], headers: Mapping[str, str]) -> UpstreamReply:
        """A good reply; in another order where the oddity `shuffle` says so."""
        indexes: list[int | None] = list(range(len(rows)))
        if "shuffle" in self.oddities and self.profile.has_index:
            indexes, rows = indexes[::-1], rows[::-1].copy()
        if "no_index" in self.oddities:
            indexes = [None] * len(rows)
        return self._reply(call, rows, indexes, None if "no_usage" in self.oddities else tokens, headers)

    def malformed(
        self, action: Action, call: FakeCall, rows: Matrix, tokens: Sequence[int], headers: Mapping[str, str]
    ) -> UpstreamReply:
        """A reply with the defect of the rule. A vendor without indexes cannot say a wrong one."""
        shape = action.reply
        if shape in _WHOLE_REPLIES:
            return malformed_reply(action, dict(headers), rows, call.model, sum(tokens), base64=False)
        rows = with_defect(rows, shape)
        indexes: list[int | None] = list(range(len(rows)))
        if shape == "shuffle" and self.profile.has_index:
            indexes.reverse()
            rows = rows[::-1].copy()
        elif shape == "short":
            indexes, rows = indexes[:-1], rows[:-1]
        elif shape == "long":
            indexes, rows = [*indexes, len(rows)], np.concatenate([rows, rows[-1:]])
        elif shape == "duplicate_index":
            indexes[-1] = 0 if len(rows) > 1 else 1
        elif shape == "missing_index":
            indexes[-1] = None
        elif shape == "wrong_model":
            call = dataclasses.replace(call, model=f"{call.model}-other")
        reply = self._reply(call, rows, indexes, None if shape == "no_usage" else tokens, headers)
        body = reply.body
        if shape == "cut_json":
            body = body[: len(body) // 2]
        body += b" " * (action.big_body_bytes - len(body))
        reply = UpstreamReply(200, reply.headers, body)
        return compressed(reply) if action.gzip else reply

    def _reply(
        self,
        call: FakeCall,
        rows: Matrix,
        indexes: Sequence[int | None],
        tokens: Sequence[int] | None,
        headers: Mapping[str, str],
    ) -> UpstreamReply:
        document, own = self.body(call, rows, indexes, tokens)
        return UpstreamReply(200, {**headers, **own}, orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY))

    # --- Errors -------------------------------------------------------------------------------------------------------

    def refuse(self, error: VendorError, headers: Mapping[str, str] | None = None, **values: object) -> UpstreamReply:
        """The error in the vendor's envelope, with the values in its words."""
        message = error.message.format(**values) if values else error.message
        complete = error if not values else _complete(error, values)
        document = (error.envelope or self.profile.envelope)(error.status, message, complete)
        raw = document if isinstance(document, bytes) else orjson.dumps(document)
        return UpstreamReply(error.status, {**self.headers, **(error.headers or {}), **(headers or {})}, raw)

    def unknown_model(self, model: str) -> UpstreamReply:
        """The refusal of a model that is not served."""
        return self.refuse(self.profile.errors.unknown_model, model=model)

    def scripted_error(self, action: Action) -> UpstreamReply:
        """The vendor's error of the status, with what the rule says in its place."""
        status = action.status or 500
        errors = self.profile.errors
        error = errors.no_credit if action.code == "insufficient_quota" else errors.of_status(status)
        if action.code and action.code != "insufficient_quota":
            error = dataclasses.replace(error, code=action.code)
        headers = {}
        if action.retry_after is not None:
            headers["retry-after"] = f"{action.retry_after}"
        if action.retry_after_ms is not None:
            headers["retry-after-ms"] = f"{action.retry_after_ms:g}"
        if action.message:
            error = dataclasses.replace(error, message=action.message.replace("{", "{{").replace("}", "}}"))
        wait = action.retry_after or 0
        reply = self.refuse(error, headers, key="", model="fake", unit="requests", wait=wait, cap=0, count=0)
        if action.body is not None:
            body = action.body.encode() if isinstance(action.body, str) else orjson.dumps(action.body)
            reply = UpstreamReply(status, reply.headers, body)
        return compressed(UpstreamReply(status, reply.headers, reply.body)) if action.gzip else reply

    def rate_limited(
        self, refusal: Refusal, quota: SlidingWindow | None, model: str, tokens: int, now: float
    ) -> UpstreamReply:
        """The vendor's 429, which says how long to wait where this vendor's do."""
        headers: dict[str, str] = {}
        states_wait = quota is None or quota.rate.states_wait
        if states_wait and self.profile.waits_in == "headers":
            headers = retry_headers(refusal.wait_s)
        elif states_wait and self.profile.waits_in == "seconds":
            headers = {"retry-after": retry_headers(refusal.wait_s)["retry-after"]}
        wait = retry_headers(refusal.wait_s)["retry-after"]
        error = self.profile.errors.rate_limited
        return self.refuse(error, headers, unit=refusal.kind, wait=wait, model=model, cap=refusal.limit, count=tokens)


def _complete(error: VendorError, values: Mapping[str, object]) -> VendorError:
    code = error.code.format(**values) if isinstance(error.code, str) else error.code
    kind = error.kind.format(**values) if error.kind else error.kind
    return dataclasses.replace(error, code=code, kind=kind, param=error.param.format(**values) if error.param else None)


def _is_tokens(item: object) -> bool:
    return isinstance(item, list) and all(type(token) is int for token in item)


def cut(item: Input, max_tokens: int) -> Input:
    """The beginning of an input that has as many tokens as a vendor embeds."""
    if isinstance(item, list):
        return item[:max_tokens]
    if fake_tokens(item) <= max_tokens:
        return item
    return item.encode("utf-8", "surrogatepass")[: max_tokens * BYTES_PER_TOKEN].decode("utf-8", "ignore")
