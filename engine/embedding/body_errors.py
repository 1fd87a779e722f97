"""Decodes JSON bodies into structs, and says of a bad one which field is wrong, in OpenAI's words."""

from __future__ import annotations

import re
from typing import Any, TypeVar

import msgspec

from engine.config.suggestions import did_you_mean
from engine.corpus.double_keys import double_key, has_quotes, quotes_in, quotes_in_items
from engine.corpus.lines import TextLine
from models.errors import InvalidInput, RequestError, UnsupportedParameter

# Where a parameter belongs that was sent to another call. Calls that know it themselves never look here.
BELONGS_TO = {
    "encoding_format": "GET /v1/embeddings/jobs/{id}/results",
    "metadata": "POST /v1/embeddings/jobs",
    "max_cost_usd": "POST /v1/embeddings/jobs",
    "dry_run": "POST /v1/embeddings/jobs",
    "providerOptions": "calls with a JSON body",
    "input": "calls with a JSON body",
}
OPTIONS = "providerOptions"
CHOICES = {"encoding_format": "'float' and 'base64'", "truncate": "'none', 'end' and 'mean'"}

Body = TypeVar("Body", bound=msgspec.Struct)


def decode(decoder: msgspec.json.Decoder[Body], body: bytes) -> Body:
    """Parse a JSON body. Raises InvalidInput or UnsupportedParameter that names the field, or the key it has twice."""
    try:
        value = decoder.decode(body)
    except msgspec.ValidationError as error:
        raise explain(error, decoder.type) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        reason = "it is empty; send a JSON object" if not body.strip() else "check quotes, commas and encoding (UTF-8)"
        raise InvalidInput(f"The body is not valid JSON: {reason}.", code="invalid_json") from error
    if not has_quotes(body, _quotes_of(value)) and (key := double_key(body)) is not None:
        raise double_key_error(key)
    return value


def _quotes_of(body: msgspec.Struct) -> int:
    """The quotes of the body, where it has no key twice and no null."""
    count = 0
    for name in body.__struct_fields__:
        value = getattr(body, name)
        if value is not None:
            count += 2 + (quotes_in_items(value) if name == "input" and type(value) is list else quotes_in(value))
    return count


def double_key_error(key: str) -> InvalidInput:
    """The error for a key that an object of the body has twice. `key`: its path."""
    return InvalidInput(f"The key '{key[:100]}' occurs twice: send it once.", param=key[:100], code="duplicate_key")


def explain(error: msgspec.ValidationError, schema: Any) -> RequestError:
    """A validation error in OpenAI's format, with the field in `param`. `schema`: the struct of the body."""
    text = str(error)
    reason, _, path = text.partition(" - at `")
    param = path.removesuffix("`").removeprefix("$").removeprefix(".").replace("[...]", "")
    unknown = re.match(r"Object contains unknown field `(.*)`", reason, re.S)
    if unknown:
        name = f"{param}.{unknown[1]}" if param else unknown[1]
        words = _what_there_is(unknown[1], param, schema)
        return UnsupportedParameter(f"Unknown parameter: '{name}'.{words}", param=name, code="unknown_parameter")
    missing = re.match(r"Object missing required field `(.*)`", reason, re.S)
    if missing:
        name = f"{param}.{missing[1]}" if param else missing[1]
        return InvalidInput(f"Missing required parameter: '{name}'.", param=name, code="missing_required_parameter")
    wrong_choice = re.match(r"Invalid enum value '(.*)'", reason, re.S)
    if wrong_choice:
        return InvalidInput(
            f"Invalid value: '{wrong_choice[1][:100]}'. Supported values are: {CHOICES[param]}.",
            param=param,
            code="invalid_value",
        )
    code = "invalid_type" if reason.startswith("Expected `") and ", got `" in reason else "invalid_value"
    where = f"Invalid '{param}': " if param else "Invalid body: "
    words = reason.replace("`", "").replace("Expected ", "expected ", 1)
    return InvalidInput(f"{where}{words}.", param=param or None, code=code)


def _what_there_is(name: str, parent: str, schema: Any) -> str:
    """What may have been meant by an unknown parameter, or which ones are known."""
    names = TextLine.__struct_fields__ if parent.startswith("input") else schema.__struct_fields__
    if near := did_you_mean(name, names):
        return near
    if not parent and name in BELONGS_TO:
        return f" It is a parameter of {BELONGS_TO[name]}."
    send = f"To send it to a provider, write providerOptions.<provider>.{name[:100]}. " if OPTIONS in names else ""
    return f" {send}Leave it out; known are {', '.join(names)}."
