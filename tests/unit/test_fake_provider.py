"""What the fake upstream answers: OpenAI's shape, OpenAI's refusals, and whatever a script asks for."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import orjson
import pytest

from models.embedding import Account, Batch, Input, Limits, Matrix, Options, Route
from models.errors import ConfigError, UpstreamProtocolError, UpstreamRateLimited
from providers.base import UpstreamRequest, check_vectors
from providers.fake import FakeAnswer, FakeProvider, FakeScript, FakeUpstream, fake_tokens, fake_vectors, input_hash

NOW = 1_700_000_000.0


def ask(upstream: FakeUpstream, given: object, now: float = NOW, **fields: Any) -> FakeAnswer:
    body = orjson.dumps({"model": "m", "input": given, **fields})
    return upstream.answer(UpstreamRequest("POST", "http://fake/v1/embeddings", {}, body), now)


def scripted(*rules: dict[str, Any], **options: Any) -> FakeUpstream:
    return FakeUpstream(FakeScript.parse(list(rules)), **options)


def error_of(answer: FakeAnswer) -> dict[str, Any]:
    error: dict[str, Any] = orjson.loads(answer.reply.body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert answer.billed is None
    return error


def batch_of(inputs: Sequence[Input], width: int = 16) -> Batch:
    return Batch(inputs, range(len(inputs)), 0, width, Options())


def route_of(width: int = 16) -> Route:
    account = Account("somewhere", "fake", FakeProvider().traits.base_url)
    return Route(account, "m", width, Limits(), Decimal(0))


class TestAnswers:
    @pytest.mark.parametrize(
        ("given", "inputs"),
        [("a", ["a"]), (["a", "b"], ["a", "b"]), ([1, 2], [[1, 2]]), ([[1, 2], [3]], [[1, 2], [3]]), (" ", [" "])],
    )
    def test_the_four_input_forms(self, given: object, inputs: list[Input]) -> None:
        answer = ask(FakeUpstream(width=16), given)
        document = orjson.loads(answer.reply.body)
        assert (answer.reply.status, document["object"], document["model"]) == (200, "list", "m")
        assert [item["index"] for item in document["data"]] == list(range(len(inputs)))
        rows = np.array([item["embedding"] for item in document["data"]], dtype=np.float32)
        assert rows.tobytes() == fake_vectors(inputs, 16, "m").tobytes()
        tokens = sum(map(fake_tokens, inputs))
        assert document["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
        assert answer.billed and (answer.billed.inputs, answer.billed.tokens) == (len(inputs), tokens)
        assert answer.billed.input_hashes == [input_hash(item, "m") for item in inputs]

    @pytest.mark.parametrize("width", [15, 16])
    def test_base64_and_dimensions(self, width: int) -> None:
        document = orjson.loads(ask(FakeUpstream(), ["a", "b"], encoding_format="base64", dimensions=width).reply.body)
        decoded = b"".join(base64.b64decode(item["embedding"], validate=True) for item in document["data"])
        assert decoded == fake_vectors(["a", "b"], width, "m").tobytes()

    @pytest.mark.parametrize(
        ("given", "fields", "said"),
        [
            (["a", ""], {}, "'$.input' is invalid"),
            ([], {}, "'$.input' is invalid"),
            ([[]], {}, "'$.input' is invalid"),
            (["a", 1], {}, "'$.input' is invalid"),
            ([None], {}, "'$.input' is invalid"),
            (["a"] * 2049, {}, "2048 or less"),
            (["a", "b" * 32_772], {}, "Invalid 'input[1]': maximum input length is 8192 tokens."),
            (["b" * 32_000] * 38, {}, "Requested 304000 tokens, max 300000 tokens per request"),
            ("a", {"dimensions": -1}, "-1 is less than the minimum of 1 - 'dimensions'"),
            ("a", {"dimensions": 17}, "'dimensions' = 17"),
            ("a", {"encoding_format": "hex"}, "encoding_format"),
            ("a", {"extra": 1}, "Unknown parameter: 'extra'."),
        ],
    )
    def test_what_openai_refuses(self, given: object, fields: dict[str, Any], said: str) -> None:
        answer = ask(FakeUpstream(width=16), given, **fields)
        assert answer.reply.status == 400 and said in error_of(answer)["message"]

    def test_the_older_message_names_no_input(self) -> None:
        answer = ask(FakeUpstream(names_offending_input=False), ["a", "b" * 32_772])
        assert "maximum context length is 8192 tokens, however you requested 8193" in error_of(answer)["message"]

    def test_keys_models_and_bodies(self) -> None:
        assert error_of(ask(FakeUpstream(api_key="sk-1"), "a"))["type"] == "invalid_request_error"
        unknown = ask(FakeUpstream(models={"other": 8}), "a")
        assert (unknown.reply.status, error_of(unknown)["code"]) == (404, "model_not_found")
        for body in (b"", b"{", b"[]", b'{"model":"m"}', b'{"model":1,"input":"a"}'):
            answer = FakeUpstream().answer(UpstreamRequest("POST", "http://fake/v1/embeddings", {}, body), NOW)
            assert answer.reply.status == 400 and error_of(answer)


class TestScripts:
    def test_when_and_times(self) -> None:
        upstream = scripted(
            {"when": {"call": 2}, "do": {"status": 503}},
            {"when": {"contains": "poison"}, "times": 1, "do": {"status": 400, "message": "no", "code": "c"}},
            {"when": {"every": 5, "model": "m"}, "do": {"latency_ms": 250}},
        )
        statuses = [ask(upstream, text).reply.status for text in ("a", "a", "poison", "poison")]
        assert statuses == [200, 503, 400, 200]
        assert ask(upstream, "a").delay_s == 0.25

    def test_probability_is_seeded(self) -> None:
        def statuses(seed: int) -> list[int]:
            rules = [{"when": {"probability": 0.3}, "do": {"status": 500}}]
            upstream = FakeUpstream(FakeScript.parse({"rules": rules, "seed": seed}), 4)
            return [ask(upstream, "a").reply.status for _ in range(300)]

        assert statuses(1) == statuses(1) != statuses(2)
        assert 60 < statuses(1).count(500) < 120

    def test_errors_read_as_openai_means_them(self) -> None:
        upstream = scripted({"do": {"status": 429, "retry_after": 2, "retry_after_ms": 1500}})
        fault = FakeProvider().error_from(ask(upstream, "a").reply)
        assert isinstance(fault, UpstreamRateLimited) and fault.retry_after_s == 1.5
        quota = ask(scripted({"do": {"status": 429, "code": "insufficient_quota"}}), "a")
        assert FakeProvider().error_from(quota.reply).code == "upstream_quota"

    def test_rate_limit_slides(self) -> None:
        upstream = scripted({"do": {"rate_limit": {"requests_per_minute": 2, "tokens_per_minute": 100}}}, width=4)
        first = ask(upstream, "a" * 200)
        assert first.reply.headers["x-ratelimit-remaining-tokens"] == "50"
        too_many_tokens = ask(upstream, "a" * 204, NOW + 10)
        assert error_of(too_many_tokens)["message"].endswith(
            "on tokens per min (TPM): Limit 100, Used 50, Requested 51. Please try again in 50s. "
            "Visit https://platform.openai.com/account/rate-limits to learn more."
        )
        assert ask(upstream, "a", NOW + 20).reply.status == 200
        too_many_calls = ask(upstream, "a", NOW + 20.5)
        assert error_of(too_many_calls)["type"] == "requests"
        assert too_many_calls.reply.headers["retry-after-ms"] == "39500"
        assert too_many_calls.reply.headers["retry-after"] == "40"
        assert ask(upstream, "a", NOW + 60).reply.status == 200

    def test_rate_limit_that_says_nothing(self) -> None:
        limits = {"requests_per_minute": 1, "states_limits": False, "states_wait": False}
        upstream = scripted({"do": {"rate_limit": limits}}, width=4)
        refused = [ask(upstream, "a").reply, ask(upstream, "a").reply][1]
        assert refused.status == 429 and "try again" not in error_of(FakeAnswer(refused))["message"]
        assert not [name for name in refused.headers if name.startswith(("retry", "x-ratelimit"))]

    @pytest.mark.parametrize(
        "shape",
        [
            "short", "long", "duplicate_index", "wrong_width", "nan", "inf", "zero",
            "html", "empty", "not_json", "cut_json",
        ],
    )  # fmt: skip
    @pytest.mark.parametrize("fmt", ["float", "base64"])
    def test_a_spoiled_reply_is_billed_and_refused(self, shape: str, fmt: str) -> None:
        answer = ask(scripted({"do": {"reply": shape}}, width=16), ["a", "b", "c"], encoding_format=fmt)
        assert answer.reply.status == 200 and answer.billed
        with pytest.raises(UpstreamProtocolError):
            check_vectors(FakeProvider().parse_reply(answer.reply, batch_of("abc")).vectors, 3, 16)

    @pytest.mark.parametrize("shape", ["shuffle", "missing_index", "floats_only", "no_usage", "wrong_model"])
    def test_an_odd_reply_still_holds_the_vectors(self, shape: str) -> None:
        answer = ask(
            scripted({"do": {"reply": shape, "big_body_bytes": 9000}}, width=16), [*"abc"], encoding_format="base64"
        )
        assert len(answer.reply.body) == 9000
        vectors: Matrix = FakeProvider().parse_reply(answer.reply, batch_of("abc")).vectors
        assert vectors.tobytes() == fake_vectors("abc", 16, "m").tobytes()
        if shape == "shuffle":
            assert [item["index"] for item in orjson.loads(answer.reply.body)["data"]] != [0, 1, 2]

    def test_delivery_faults(self) -> None:
        hang = ask(scripted({"do": {"fault": "hang"}}), "a")
        assert (hang.fault, hang.billed) == ("hang", None)
        assert ask(scripted({"do": {"fault": "close", "billed": True}}), "a").billed
        cut = ask(scripted({"do": {"fault": "truncate"}}), "a")
        assert cut.promised_bytes // 2 == len(cut.reply.body) and cut.billed

    def test_a_script_may_be_json_or_toml(self) -> None:
        toml = "[[rules]]\ntimes = 1\nwhen.call = 1\ndo = { status = 500 }\n"
        for text in (toml, '[{"times": 1, "when": {"call": 1}, "do": {"status": 500}}]'):
            assert FakeScript.parse_text(text).rules == FakeScript.parse_text(toml).rules

    @pytest.mark.parametrize(
        ("script", "said"),
        [([{"do": {"staus": 1}}], "staus"), ({"rule": []}, "rule"), ([{"do": {"fault": "x"}}], "x"), ("x", "array")],
    )
    def test_a_wrong_script_is_named(self, script: object, said: str) -> None:
        with pytest.raises(ConfigError, match=said):
            FakeScript.parse(script)


def test_the_provider_and_its_upstream_fit() -> None:
    upstream, provider = FakeUpstream(), FakeProvider()
    request = provider.request(batch_of(["a", "c"], 12), route_of(24))
    embedded = provider.parse_reply(upstream.answer(request, NOW).reply, batch_of(["a", "c"], 12))
    assert embedded.vectors.tobytes() == fake_vectors(["a", "c"], 12, "m").tobytes()
    assert embedded.tokens == 2 and provider.traits.accepts_tokens
