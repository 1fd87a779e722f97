"""Each fake and the adapter of its kind understand each other: vectors, tokens, limits and keys."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from models.embedding import Batch, Matrix, Options
from models.errors import (
    UpstreamAuthFailed,
    UpstreamError,
    UpstreamMisconfigured,
    UpstreamOverloaded,
    UpstreamProtocolError,
    UpstreamRateLimited,
    UpstreamRejected,
    UpstreamTooLarge,
    UpstreamUnavailable,
)
from providers import PROVIDERS
from providers.base import UpstreamRequest
from providers.fake import FakeUpstream, fake_tokens, fake_vectors
from providers.fake.formats import FAKE_KINDS, fake_format
from tests.contract.fake_calls import KINDS, NOW, TEXTS, WIDTH, exchange, narrowed, of_tokens
from tests.contract.provider_matrix import OBSERVED, Observe

# Inputs of a call, tokens of an input (with what becomes of a longer one), and tokens of a call. None: no limit.
CAPS: dict[str, tuple[int | None, int | None, str, int | None]] = {
    "openai": (2048, 8192, "refused", 300_000),
    "azure": (2048, 8192, "refused", 300_000),
    "voyage": (1000, 32_000, "refused", 120_000),
    "mistral": (512, 8192, "refused", 16_384),
    "jina": (512, 8192, "refused", None),
    "together": (None, 8192, "refused", None),
    "fireworks": (2048, 8192, "refused", None),
    "deepinfra": (1024, 512, "cut", None),
    "openrouter": (96, 8192, "refused", None),
    "vercel": (96, 8192, "refused", None),
    "mixedbread": (256, 512, "cut", None),
    "nim": (50, 512, "refused", None),
    "databricks": (150, 8192, "refused", None),
    "vllm": (None, 512, "refused", None),
    "sglang": (None, 8192, "refused", None),
    "infinity": (2048, 512, "cut", None),
    "lmstudio": (None, 512, "refused", None),
    "llamacpp": (None, 512, "refused", None),
    "cohere": (96, 128_000, "refused", None),
    "google": (100, 2048, "cut", None),
    "vertex": (250, 2048, "refused", 20_000),
    "nomic": (400, 8192, "cut", None),
    "bedrock": (1, 8192, "refused", None),
    "tei": (32, 512, "refused", None),
    "huggingface": (32, 512, "refused", None),
    "ollama": (None, 2048, "refused", None),
    "dashscope": (10, 8192, "refused", None),
    "cloudflare": (100, 512, "cut", None),
    "snowflake": (None, 8192, "refused", None),
    "perplexity": (512, 32_768, "refused", 120_000),
}
# A call of one input has no order.
ONE_INPUT = {"bedrock"}
each_kind = pytest.mark.parametrize("kind", KINDS)
each_kind_of_lists = pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ONE_INPUT])


def kinds_that(holds: Callable[[str], object]) -> pytest.MarkDecorator:
    """The kinds of which something holds: of the others there is nothing to test."""
    return pytest.mark.parametrize("kind", [kind for kind in KINDS if holds(kind)])


def has_width_field(kind: str) -> bool:
    return PROVIDERS[kind].traits.width_field is not None


def can_allow_cuts(kind: str) -> bool:
    """True where the vendor has a word by which a caller allows that inputs are cut. Bedrock's depends on the model."""
    word = PROVIDERS[kind].traits.truncate
    return word is not None and "end" in word.values and kind != "bedrock"


def texts_for(kind: str) -> list[str]:
    return TEXTS[:1] if kind in ONE_INPUT else TEXTS


def tolerance(kind: str) -> float:
    """Perplexity's vectors are bytes."""
    return 0.02 if kind == "perplexity" else 1e-6


def unit(rows: Matrix) -> Matrix:
    lengths: Matrix = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / lengths


def test_each_kind_has_its_limits_here() -> None:
    assert set(FAKE_KINDS) == set(CAPS)


@pytest.mark.provider_column("sync", "usage")
@each_kind
@pytest.mark.parametrize("encoding", ["base64", "float"])
def test_vectors_and_tokens_as_billed(kind: str, encoding: str, record_property: Observe) -> None:
    side, texts = exchange(kind, encoding=encoding), texts_for(kind)
    billed = side.answer(texts).billed
    assert billed and (billed.inputs, billed.tokens) == (len(texts), sum(map(fake_tokens, texts)))
    embedded = side.embed(texts)
    np.testing.assert_allclose(embedded.vectors, fake_vectors(texts, WIDTH, side.model()), atol=tolerance(kind))
    counts = PROVIDERS[kind].traits.usage == "tokens" and kind != "lmstudio"
    assert embedded.tokens == (billed.tokens if counts else None)
    record_property(OBSERVED + "usage", "estimated" if embedded.tokens is None else "tokens")


@pytest.mark.provider_column("input_type")
@each_kind
def test_queries_have_vectors_of_their_own_where_the_vendor_has_a_word_for_them(
    kind: str, record_property: Observe
) -> None:
    side, texts = exchange(kind), texts_for(kind)
    words = PROVIDERS[kind].traits.input_type
    plain = side.embed(texts).vectors
    np.testing.assert_array_equal(side.embed(texts, options=Options(input_type="document")).vectors, plain)
    query = side.embed(texts, options=Options(input_type="query")).vectors
    has_word = words is not None and "query" in words.values and kind != "bedrock"
    assert np.array_equal(query, plain) is not has_word
    if has_word:
        expected = fake_vectors(texts, WIDTH, side.model(), "query")
        np.testing.assert_allclose(query, expected, atol=tolerance(kind))
    family = f" of {side.model()}" if kind == "bedrock" else ""
    record_property(OBSERVED + "input_type", "its field" if has_word else f"no field{family}")


@pytest.mark.provider_column("dimensions")
@kinds_that(lambda kind: has_width_field(kind) or kind == "bedrock")
def test_narrower_vectors(kind: str, record_property: Observe) -> None:
    side, texts = exchange(kind), texts_for(kind)
    rows = side.embed(texts, width=12).vectors
    np.testing.assert_allclose(unit(rows), fake_vectors(texts, 12, side.model()), atol=tolerance(kind))
    is_unit = PROVIDERS[kind].traits.narrow_is_unit
    assert np.allclose(np.linalg.norm(rows, axis=1), 1.0, atol=1e-3) is is_unit
    assert side.request(texts, width=12).body != side.request(texts, width=11).body
    record_property(OBSERVED + "dimensions", "its field" if is_unit else "its field, renormalised here")


@pytest.mark.provider_column("limits")
@kinds_that(lambda kind: CAPS[kind][0] is not None and kind not in ONE_INPUT)  # there the adapter itself refuses more
def test_one_input_more_than_a_call_takes(kind: str, record_property: Observe) -> None:
    most = CAPS[kind][0]
    assert most is not None
    side = exchange(kind)
    assert len(side.embed(["x"] * most).vectors) == most
    with pytest.raises(UpstreamTooLarge) as refused:
        side.embed(["x"] * (most + 1))
    assert refused.value.limit == "inputs"
    record_property(OBSERVED + "limits", f"{most} inputs")


@pytest.mark.provider_column("limits")
@each_kind
def test_one_token_more_than_an_input_has(kind: str, record_property: Observe) -> None:
    _, longest, outcome, _ = CAPS[kind]
    assert longest is not None
    side = exchange(kind)
    assert len(side.embed([of_tokens(longest)]).vectors) == 1
    over = of_tokens(longest) + "y"
    record_property(OBSERVED + "limits", f"{longest} tokens an input")
    if outcome == "cut":
        record_property(OBSERVED + "truncate", "cuts by itself")
        rows = side.embed([over]).vectors
        np.testing.assert_allclose(rows, fake_vectors([over[:-1]], WIDTH, side.model()), atol=tolerance(kind))
        return
    with pytest.raises(UpstreamRejected) as refused:
        side.embed([over])
    assert refused.value.code == "input_too_long"


@pytest.mark.provider_column("limits")
@kinds_that(lambda kind: CAPS[kind][3] is not None)
def test_one_token_more_than_a_call_has(kind: str, record_property: Observe) -> None:
    _, longest, _, most = CAPS[kind]
    assert most is not None and longest is not None
    side = exchange(kind)
    whole, rest = divmod(most, longest)
    texts = [of_tokens(longest)] * whole + ([of_tokens(rest)] if rest else [])
    assert len(side.embed(texts).vectors) == len(texts)
    with pytest.raises(UpstreamTooLarge) as refused:
        side.embed([*texts, "y"])
    assert refused.value.limit == "tokens"
    record_property(OBSERVED + "limits", f"{most} tokens a call")


@pytest.mark.provider_column("base64")
@kinds_that(lambda kind: PROVIDERS[kind].traits.base64 is not None and kind != "perplexity")  # its vectors are bytes
def test_base64_is_asked_for_and_read(kind: str, record_property: Observe) -> None:
    compact, plain = (exchange(kind, encoding=encoding) for encoding in ("base64", "float"))
    texts = texts_for(kind)
    assert compact.request(texts).body != plain.request(texts).body
    assert len(compact.answer(texts).reply.body) < len(plain.answer(texts).reply.body)
    assert compact.embed(texts).vectors.tobytes() == fake_vectors(texts, WIDTH, compact.model()).tobytes()
    record_property(OBSERVED + "base64", "yes")


@pytest.mark.provider_column("token arrays")
@kinds_that(lambda kind: PROVIDERS[kind].traits.accepts_tokens)
def test_token_arrays_are_sent_as_they_are(kind: str, record_property: Observe) -> None:
    side, inputs = exchange(kind), [[1, 2, 3], [4, 5]]
    batch = Batch(inputs, range(2), 5, WIDTH, Options())
    provider = PROVIDERS[kind]
    answer = side.fake.answer(provider.request(batch, side.route), NOW)
    rows = provider.parse_reply(answer.reply, batch, side.route).vectors
    np.testing.assert_allclose(rows, fake_vectors(inputs, WIDTH, side.model()), atol=1e-6)
    assert answer.billed and answer.billed.tokens == 5
    record_property(OBSERVED + "token arrays", "yes")


@pytest.mark.provider_column("truncate")
@kinds_that(can_allow_cuts)
def test_a_too_long_input_is_cut_where_the_caller_allows_it(kind: str, record_property: Observe) -> None:
    longest = CAPS[kind][1]
    assert longest is not None
    side = exchange(kind)
    rows = side.embed([of_tokens(longest) + "y"], options=Options(truncate="end")).vectors
    np.testing.assert_allclose(rows, fake_vectors([of_tokens(longest)], WIDTH, side.model()), atol=tolerance(kind))
    record_property(OBSERVED + "truncate", "its field")


@pytest.mark.provider_column("errors")
@each_kind
def test_a_wrong_key_and_an_unknown_model(kind: str) -> None:
    with pytest.raises(UpstreamAuthFailed) as refused:
        exchange(kind, key="sk-other").embed(texts_for(kind))
    assert refused.value.code == "upstream_auth_failed"
    if kind in ("tei", "llamacpp", "lmstudio"):
        return  # they serve one model, whatever its name
    with pytest.raises(UpstreamMisconfigured):
        exchange(kind, models={"another": WIDTH}).embed(texts_for(kind))


@pytest.mark.provider_column("errors")
@kinds_that(lambda kind: kind != "infinity")
def test_an_empty_input_is_refused(kind: str) -> None:
    side = exchange(kind)
    texts = [*texts_for(kind)[:-1], ""]
    with pytest.raises(UpstreamProtocolError if kind == "ollama" else UpstreamRejected) as refused:
        side.embed(texts)
    if kind in ("cohere", "mistral"):
        assert refused.value.offending_position == 2


def test_an_empty_input_that_has_a_vector() -> None:
    rows = exchange("infinity").embed(["a", ""]).vectors
    np.testing.assert_allclose(rows, fake_vectors(["a", ""], WIDTH, exchange("infinity").model()), atol=1e-6)
    with pytest.raises(UpstreamRejected):
        exchange("infinity").embed([])


@pytest.mark.provider_column("dimensions")
@kinds_that(lambda kind: has_width_field(kind) and kind != "ollama")  # it ignores such a width
def test_a_width_that_the_model_does_not_have(kind: str) -> None:
    # OpenAI's own fake has no such model, and a call to TEI names none.
    for is_fixed, width in ((True, 12), (False, 17))[kind in ("openai", "tei") :]:
        side = narrowed(exchange(kind), is_fixed)
        with pytest.raises(UpstreamMisconfigured):
            side.embed(texts_for(kind), width=width)


STRICT = (
    "openai", "azure", "voyage", "mistral", "jina", "together", "fireworks", "mixedbread", "nim", "cohere", "google",
    "vertex", "nomic", "bedrock", "perplexity",
)  # fmt: skip


@each_kind
def test_a_field_that_the_vendor_does_not_know(kind: str) -> None:
    side = exchange(kind, body={"colour": "red"})
    if kind in STRICT:
        with pytest.raises((UpstreamMisconfigured, UpstreamRejected)):
            side.embed(texts_for(kind))
    else:
        assert len(side.embed(texts_for(kind)).vectors) == len(texts_for(kind))


@pytest.mark.provider_column("errors")
@each_kind
@pytest.mark.parametrize(
    ("rule", "means", "code"),
    [
        ({"status": 401}, UpstreamAuthFailed, "upstream_auth_failed"),
        ({"status": 429, "code": "insufficient_quota"}, UpstreamAuthFailed, "upstream_quota"),
        ({"status": 429}, UpstreamRateLimited, "upstream_rate_limited"),
        ({"status": 413}, UpstreamTooLarge, "upstream_too_large"),
        ({"status": 500}, UpstreamUnavailable, "upstream_unavailable"),
        ({"status": 503, "retry_after": 7}, UpstreamOverloaded, "upstream_unavailable"),
        ({"status": 503, "message": "{down}"}, UpstreamOverloaded, "upstream_unavailable"),
    ],
)
def test_errors_that_a_script_asks_for(
    kind: str, rule: dict[str, object], means: type[UpstreamError], code: str
) -> None:
    with pytest.raises(means) as refused:
        exchange(kind, {"do": rule}).embed(texts_for(kind))
    assert refused.value.code == code
    assert refused.value.retry_after_s == rule.get("retry_after")


WITHOUT_WAIT = {
    "jina", "deepinfra", "nim", "databricks", "vllm", "sglang", "infinity", "lmstudio", "llamacpp", "bedrock", "tei",
    "huggingface", "ollama", "nomic", "dashscope", "cloudflare", "snowflake", "perplexity",
}  # fmt: skip


@pytest.mark.provider_column("errors")
@each_kind
def test_a_call_over_the_quota(kind: str) -> None:
    side = exchange(kind, {"do": {"rate_limit": {"requests_per_minute": 1, "states_limits": False}}})
    side.embed(texts_for(kind))
    with pytest.raises(UpstreamRateLimited) as refused:
        side.embed(texts_for(kind))
    assert (refused.value.retry_after_s is None) is (kind in WITHOUT_WAIT)


@pytest.mark.provider_column("errors")
@each_kind
@pytest.mark.parametrize(
    "shape", ["short", "long", "wrong_width", "nan", "zero", "html", "empty", "not_json", "cut_json"]
)
def test_malformed_replies_are_refused(kind: str, shape: str) -> None:
    with pytest.raises(UpstreamError) as refused:
        exchange(kind, {"do": {"reply": shape}}, encoding="float").embed(texts_for(kind))
    assert type(refused.value) is UpstreamProtocolError


@kinds_that(lambda kind: kind != "openai" and kind not in ONE_INPUT)  # OpenAI's script has rules for them
@pytest.mark.parametrize("oddities", [["shuffle"], ["no_index"], ["no_usage"]])
def test_oddities_that_change_no_vector(kind: str, oddities: list[str]) -> None:
    side = exchange(kind, oddities=oddities)
    embedded = side.embed(TEXTS)
    np.testing.assert_allclose(embedded.vectors, fake_vectors(TEXTS, WIDTH, side.model()), atol=tolerance(kind))
    if oddities == ["no_usage"]:
        assert embedded.tokens is None


@each_kind_of_lists
@pytest.mark.parametrize("shape", ["shuffle", "no_usage"])
def test_replies_of_a_script_that_are_put_right(kind: str, shape: str) -> None:
    side = exchange(kind, {"do": {"reply": shape}})
    np.testing.assert_allclose(
        side.embed(TEXTS).vectors, fake_vectors(TEXTS, WIDTH, side.model()), atol=tolerance(kind)
    )


INDEXED = [kind for kind in KINDS if PROVIDERS[kind].traits.order == "index" and kind not in ("local", *ONE_INPUT)]


@pytest.mark.parametrize("kind", INDEXED)
def test_an_index_that_is_said_twice_is_refused(kind: str) -> None:
    with pytest.raises(UpstreamProtocolError):
        exchange(kind, {"do": {"reply": "duplicate_index"}}).embed(TEXTS)


def test_one_space_for_fakes_whose_models_have_other_names() -> None:
    rows = []
    for kind in ("openai", "cohere", "voyage"):
        side = exchange(kind, model=f"{kind}-model")
        side.fake.space = "shared"
        rows.append(side.embed(TEXTS).vectors)
    assert all(np.array_equal(each, fake_vectors(TEXTS, WIDTH, "shared")) for each in rows)


def test_what_is_no_call_for_vectors() -> None:
    for kind in FAKE_KINDS:
        fake = FakeUpstream(width=WIDTH, wire_format=fake_format(kind))
        for method, path in (("POST", "/elsewhere"), ("GET", "/elsewhere")):
            answer = fake.answer(UpstreamRequest(method, f"http://fake{path}", {}, b""), NOW)
            assert answer.reply.status >= 400 and answer.billed is None


@each_kind
@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"{}", b'{"model": 1}', b'{"model":"m","input":{"texts":5}}'])
def test_a_body_that_is_no_call_is_refused(kind: str, body: bytes) -> None:
    side = exchange(kind)
    request = side.request(texts_for(kind))
    answer = side.fake.answer(UpstreamRequest("POST", request.url, request.headers, body), NOW)
    assert 400 <= answer.reply.status < 500 and answer.billed is None
