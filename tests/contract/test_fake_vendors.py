"""The fakes of the formats that are not OpenAI's, by their bodies: what each vendor does and no other."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import orjson
import pytest

from models.errors import (
    UpstreamAuthFailed,
    UpstreamError,
    UpstreamMisconfigured,
    UpstreamRateLimited,
    UpstreamRejected,
    UpstreamTooLarge,
    UpstreamUnavailable,
)
from providers.base import UpstreamReply, UpstreamRequest
from providers.error_envelope import error_facts
from providers.error_map import error_from
from providers.fake import FakeScript, FakeUpstream, fake_vectors
from providers.fake.formats import fake_format

NOW = 1_700_000_000.0
WIDTH = 16
TEXTS = ["red", "green grass", "blue"]
TASK = {"taskType": "RETRIEVAL_QUERY"}


def of_tokens(count: int) -> str:
    return "x" * (4 * count)


def fake(kind: str, *rules: dict[str, Any], oddities: tuple[str, ...] = (), **options: Any) -> FakeUpstream:
    wire = fake_format(kind, frozenset(oddities))
    return FakeUpstream(FakeScript.parse(list(rules)), WIDTH, wire_format=wire, **options)


def post(upstream: FakeUpstream, path: str, body: Any, **headers: str) -> UpstreamReply:
    return upstream.answer(UpstreamRequest("POST", f"http://fake{path}", headers, orjson.dumps(body)), NOW).reply


def read(reply: UpstreamReply) -> Any:
    assert reply.status == 200, reply.body
    return orjson.loads(reply.body)


def error_of(reply: UpstreamReply) -> UpstreamError:
    assert reply.status != 200
    return error_from(error_facts(reply.status, reply.body, detail_is_message=True), reply.headers)


def rows(vectors: list[list[float]]) -> Any:
    return np.array(vectors, dtype=np.float32)


class TestGoogle:
    PATH = "/v1beta/models/gemini-embedding-001:batchEmbedContents"
    SECOND = "/v1beta/models/gemini-embedding-2:batchEmbedContents"

    def body(self, texts: list[str], model: str = "gemini-embedding-001", **fields: Any) -> dict[str, Any]:
        each = [{"model": f"models/{model}", "content": {"parts": [{"text": text}]}, **fields} for text in texts]
        return {"requests": each}

    def test_vectors_in_order_and_no_length_of_one_below_the_native_width(self) -> None:
        document = read(post(fake("google"), self.PATH, self.body(TEXTS, outputDimensionality=8)))
        vectors = rows([each["values"] for each in document["embeddings"]])
        np.testing.assert_array_equal(vectors, fake_vectors(TEXTS, WIDTH, "gemini-embedding-001")[:, :8])
        assert document["usageMetadata"]["promptTokenCount"] == 5
        assert "usageMetadata" not in read(post(fake("google", oddities=("no_usage",)), self.PATH, self.body(TEXTS)))

    def test_the_second_generation_ignores_the_task_and_narrows_to_length_one(self) -> None:
        model = "gemini-embedding-2"
        body = self.body(TEXTS, model, outputDimensionality=8, **TASK)
        vectors = rows([each["values"] for each in read(post(fake("google"), self.SECOND, body))["embeddings"]])
        np.testing.assert_array_equal(vectors, fake_vectors(TEXTS, 8, model))
        first = read(post(fake("google"), self.PATH, self.body(TEXTS, **TASK)))
        query = rows([each["values"] for each in first["embeddings"]])
        np.testing.assert_array_equal(query, fake_vectors(TEXTS, WIDTH, "gemini-embedding-001", "query"))

    def test_limits_prefix_and_keys(self) -> None:
        assert error_of(post(fake("google"), self.PATH, self.body(["x"] * 101))).code == "upstream_too_large"
        wrong = post(fake("google"), self.PATH, self.body(TEXTS, "gemini-embedding-2"))
        assert wrong.status == 400
        refused = post(fake("google", api_key="k"), self.PATH, self.body(TEXTS), **{"x-goog-api-key": "j"})
        assert refused.status == 400 and type(error_of(refused)) is UpstreamAuthFailed
        assert post(fake("google", api_key="k"), self.PATH, self.body(TEXTS), **{"x-goog-api-key": "k"}).status == 200

    def test_errors_in_a_list_and_quotas_in_details(self) -> None:
        listed = post(fake("google", oddities=("list_errors",)), self.PATH, self.body([""]))
        assert isinstance(orjson.loads(listed.body), list) and type(error_of(listed)) is UpstreamRejected
        limit = {"do": {"rate_limit": {"tokens_per_minute": 6}}}
        upstream = fake("google", limit)
        post(upstream, self.PATH, self.body(TEXTS))
        error = error_of(post(upstream, self.PATH, self.body(TEXTS)))
        assert isinstance(error, UpstreamRateLimited) and (error.quota, error.retry_after_s) == ("tokens", 60.0)
        spent = post(fake("google", {"do": {"status": 429, "code": "insufficient_quota"}}), self.PATH, self.body(TEXTS))
        assert error_of(spent).code == "upstream_quota"


class TestVertex:
    PATH = "/v1/projects/p/locations/l/publishers/google/models/gemini-embedding-001:predict"

    def body(self, texts: list[str], **parameters: Any) -> dict[str, Any]:
        return {"instances": [{"content": text} for text in texts], "parameters": parameters}

    def test_each_prediction_counts_its_tokens(self) -> None:
        texts = [*TEXTS, of_tokens(2049)]
        predictions = read(post(fake("vertex"), self.PATH, self.body(texts)))["predictions"]
        statistics = [each["embeddings"]["statistics"] for each in predictions]
        assert [each["token_count"] for each in statistics] == [1.0, 3.0, 1.0, 2048.0]
        assert [each["truncated"] for each in statistics] == [False, False, False, True]
        refused = post(fake("vertex"), self.PATH, self.body(texts, autoTruncate=False))
        assert error_of(refused).code == "input_too_long"

    def test_limits_and_a_token_that_has_expired(self) -> None:
        many = error_of(post(fake("vertex"), self.PATH, self.body(["x"] * 251)))
        long = error_of(post(fake("vertex"), self.PATH, self.body([of_tokens(2000)] * 10 + ["x"])))
        assert isinstance(many, UpstreamTooLarge) and many.limit == "inputs"
        assert isinstance(long, UpstreamTooLarge) and long.limit == "tokens"
        upstream = fake("vertex", oddities=("expired_token",))
        assert type(error_of(post(upstream, self.PATH, self.body(TEXTS)))) is UpstreamAuthFailed
        assert post(upstream, self.PATH, self.body(TEXTS)).status == 200


def test_nomic_names_the_text_that_is_empty() -> None:
    path, upstream = "/v1/embedding/text", fake("nomic")
    document = read(post(upstream, path, {"model": "m", "texts": TEXTS}))
    np.testing.assert_array_equal(rows(document["embeddings"]), fake_vectors(TEXTS, WIDTH, "m"))
    assert document["usage"] == {"prompt_tokens": 5, "total_tokens": 5}
    assert error_of(post(upstream, path, {"model": "m", "texts": ["a", ""]})).offending_position == 1
    assert isinstance(error_of(post(upstream, path, {"model": "m", "texts": ["a"] * 401})), UpstreamTooLarge)
    assert type(error_of(post(upstream, path, {"model": "m", "texts": TEXTS, "colour": 1}))) is UpstreamMisconfigured


class TestBedrock:
    TITAN = "/model/amazon.titan-embed-text-v2%3A0/invoke"
    COHERE = "/model/cohere.embed-english-v3/invoke"
    NOVA = "/model/amazon.nova-2-multimodal-embeddings-v1%3A0/invoke"

    def test_titan_takes_one_text(self) -> None:
        reply = post(fake("bedrock"), self.TITAN, {"inputText": "red", "dimensions": 8, "normalize": True})
        document = read(reply)
        expected = fake_vectors(["red"], 8, "amazon.titan-embed-text-v2:0")
        np.testing.assert_array_equal(rows([document["embedding"]]), expected)
        assert document["inputTextTokenCount"] == 1 and reply.headers["x-amzn-bedrock-input-token-count"] == "1"
        extra = post(fake("bedrock"), "/model/amazon.titan-embed-text-v1/invoke", {"inputText": "a", "dimensions": 8})
        assert type(error_of(extra)) is UpstreamMisconfigured
        assert extra.headers["x-amzn-errortype"].startswith("ValidationException:http")
        long = error_of(post(fake("bedrock"), self.TITAN, {"inputText": of_tokens(8193)}))
        assert isinstance(long, UpstreamRejected) and (long.token_limit, long.token_count) == (8192, 8193)
        assert error_of(post(fake("bedrock"), self.TITAN, {"inputText": "x" * 50_001})).code == "input_too_long"

    def test_cohere_counts_its_tokens_in_a_header_only(self) -> None:
        body = {"texts": TEXTS, "input_type": "search_document"}
        reply = post(fake("bedrock"), self.COHERE, body)
        document = read(reply)
        np.testing.assert_array_equal(
            rows(document["embeddings"]), fake_vectors(TEXTS, WIDTH, "cohere.embed-english-v3")
        )
        assert reply.headers["x-amzn-bedrock-input-token-count"] == "5" and set(document) == {
            "embeddings",
            "id",
            "texts",
        }
        by_type = read(post(fake("bedrock"), self.COHERE, {**body, "embedding_types": ["float"]}))
        assert by_type["embeddings"]["float"] == document["embeddings"]
        assert error_of(post(fake("bedrock"), self.COHERE, {**body, "texts": ["x" * 2049]})).code == "input_too_long"
        assert isinstance(error_of(post(fake("bedrock"), self.COHERE, {**body, "texts": ["x"] * 97})), UpstreamTooLarge)
        assert read(post(fake("bedrock"), self.COHERE, {**body, "texts": ["x" * 2049], "truncate": "END"}))

    def test_nova_nests_its_parameters(self) -> None:
        text = {"truncationMode": "END", "value": "red"}
        parameters = {"embeddingPurpose": "TEXT_RETRIEVAL", "embeddingDimension": 8, "text": text}
        document = read(post(fake("bedrock"), self.NOVA, {"singleEmbeddingParams": parameters}))
        expected = fake_vectors(["red"], 8, "amazon.nova-2-multimodal-embeddings-v1:0", "query")
        np.testing.assert_array_equal(rows([document["embeddings"][0]["embedding"]]), expected)

    def test_keys_and_errors(self) -> None:
        upstream = fake("bedrock", api_key="k")
        assert post(upstream, self.TITAN, {"inputText": "a"}, authorization="Bearer k").status == 200
        assert type(error_of(post(upstream, self.TITAN, {"inputText": "a"}))) is UpstreamAuthFailed
        failed = fake("bedrock", {"do": {"status": 424, "code": "ModelErrorException"}})
        assert type(error_of(post(failed, self.TITAN, {"inputText": "a"}))) is UpstreamUnavailable
        throttled = fake("bedrock", {"do": {"rate_limit": {"requests_per_minute": 1, "states_limits": False}}})
        post(throttled, self.TITAN, {"inputText": "a"})
        reply = post(throttled, self.TITAN, {"inputText": "a"})
        assert error_of(reply).retry_after_s is None and reply.headers["x-amzn-errortype"].startswith("Throttling")


class TestTei:
    def test_both_paths_and_what_the_server_says_of_itself(self) -> None:
        native = post(fake("tei"), "/embed", {"inputs": TEXTS, "normalize": True})
        np.testing.assert_array_equal(rows(read(native)), fake_vectors(TEXTS, WIDTH, "m"))
        assert native.headers["x-compute-tokens"] == "5"
        openai = read(post(fake("tei"), "/v1/embeddings", {"input": "red", "model": "m", "encoding_format": "base64"}))
        vector = base64.b64decode(openai["data"][0]["embedding"])
        assert vector == fake_vectors(["red"], WIDTH, "m").tobytes()
        info = fake("tei").answer(UpstreamRequest("GET", "http://fake/info", {}, b""), NOW)
        assert orjson.loads(info.reply.body)["max_client_batch_size"] == 32 and info.billed is None

    @pytest.mark.parametrize(("oddities", "status"), [((), 422), (("before_1_9",), 413)])
    def test_the_status_of_a_refusal_by_version(self, oddities: tuple[str, ...], status: int) -> None:
        upstream = fake("tei", oddities=oddities)
        for inputs, means in ((["x"] * 33, UpstreamTooLarge), ([of_tokens(513)], UpstreamRejected)):
            reply = post(upstream, "/embed", {"inputs": inputs})
            assert reply.status == status and type(error_of(reply)) is means

    def test_errors_of_the_openai_path_have_no_wrapper(self) -> None:
        for path, field, name in (("/v1/embeddings", "input", "message"), ("/embed", "inputs", "error")):
            reply = post(fake("tei"), path, {field: ["x"] * 33, "model": "m"})
            assert orjson.loads(reply.body)[name] == "batch size 33 > maximum allowed batch size 32"
            assert isinstance(error_of(reply), UpstreamTooLarge)

    def test_cuts_bytes_and_an_empty_401(self) -> None:
        text = of_tokens(513)
        cut = read(post(fake("tei", oddities=("cuts",)), "/embed", {"inputs": text}))
        np.testing.assert_array_equal(rows(cut), fake_vectors([of_tokens(512)], WIDTH, "m"))
        error = error_of(post(fake("tei"), "/embed", {"inputs": "x" * 2_000_000}))
        assert isinstance(error, UpstreamTooLarge) and error.limit == "bytes"
        refused = post(fake("tei", api_key="k"), "/embed", {"inputs": TEXTS})
        assert (refused.status, refused.body) == (401, b"")

    def test_the_router_may_leave_the_list_out(self) -> None:
        path = "/hf-inference/models/org/name/pipeline/feature-extraction"
        flat = read(post(fake("huggingface", oddities=("flat_vector",)), path, {"inputs": "red"}))
        np.testing.assert_array_equal(rows([flat]), fake_vectors(["red"], WIDTH, "org/name"))


class TestOllama:
    def ask(self, texts: Any, *oddities: str, **fields: Any) -> UpstreamReply:
        return post(fake("ollama", oddities=oddities), "/api/embed", {"model": "m", "input": texts, **fields})

    def test_an_empty_text_has_no_vector(self) -> None:
        assert read(self.ask(""))["embeddings"] == [] == read(self.ask([]))["embeddings"]
        assert len(read(self.ask(["a", "", "b"]))["embeddings"]) == 2

    def test_long_texts_are_cut_and_wide_widths_ignored(self) -> None:
        document = read(self.ask(of_tokens(2049), dimensions=64))
        np.testing.assert_array_equal(rows(document["embeddings"]), fake_vectors([of_tokens(2048)], WIDTH, "m"))
        assert document["prompt_eval_count"] == 2048
        narrow = read(self.ask(TEXTS, dimensions=8))
        np.testing.assert_array_equal(rows(narrow["embeddings"]), fake_vectors(TEXTS, 8, "m"))
        assert error_of(self.ask(of_tokens(2049), truncate=False)).code == "input_too_long"

    @pytest.mark.parametrize(("oddity", "status"), [("nan_500", 500), ("nan_400", 400)])
    def test_one_input_fails_the_whole_call(self, oddity: str, status: int) -> None:
        reply = self.ask(["a", "NaN", "b"], oddity)
        assert reply.status == status and type(error_of(reply)) is UpstreamRejected
        assert self.ask(["a", "b"], oddity).status == 200


def test_dashscope_shuffles_by_text_index() -> None:
    path = "/api/v1/services/embeddings/text-embedding/text-embedding"
    upstream = fake("dashscope", oddities=("shuffle",))
    document = read(post(upstream, path, {"model": "m", "input": {"texts": TEXTS}, "parameters": {"dimension": 8}}))
    items = document["output"]["embeddings"]
    assert [item["text_index"] for item in items] == [2, 1, 0] and document["usage"] == {"total_tokens": 5}
    np.testing.assert_array_equal(rows([item["embedding"] for item in items[::-1]]), fake_vectors(TEXTS, 8, "m"))
    error = error_of(post(upstream, path, {"model": "m", "input": {"texts": ["x"] * 11}}))
    assert isinstance(error, UpstreamTooLarge) and error.limit == "inputs"
    older = {"model": "text-embedding-v1", "input": {"texts": ["x"] * 25}}
    assert len(read(post(upstream, path, older))["output"]["embeddings"]) == 25


def test_cloudflare_wraps_results_and_errors() -> None:
    path, upstream = "/client/v4/accounts/a/ai/run/@cf/baai/bge-m3", fake("cloudflare")
    document = read(post(upstream, path, {"text": TEXTS}))
    assert document["success"] is True and document["result"]["shape"] == [3, WIDTH]
    np.testing.assert_array_equal(rows(document["result"]["data"]), fake_vectors(TEXTS, WIDTH, "@cf/baai/bge-m3"))
    refused = post(fake("cloudflare", models={"other": WIDTH}), path, {"text": TEXTS})
    assert orjson.loads(refused.body)["success"] is False and type(error_of(refused)) is UpstreamMisconfigured
    assert isinstance(error_of(post(upstream, path, {"text": ["x"] * 101})), UpstreamTooLarge)


def test_snowflake_nests_its_vectors() -> None:
    path = "/api/v2/cortex/inference:embed"
    document = read(post(fake("snowflake"), path, {"model": "m", "text": TEXTS}))
    vectors = rows([item["embedding"][0] for item in document["data"]])
    np.testing.assert_array_equal(vectors, fake_vectors(TEXTS, WIDTH, "m"))


def test_perplexity_gives_bytes() -> None:
    body = {"model": "m", "input": TEXTS, "encoding_format": "base64_int8"}
    document = read(post(fake("perplexity"), "/v1/embeddings", body))
    vectors = [np.frombuffer(base64.b64decode(item["embedding"]), dtype=np.int8) for item in document["data"]]
    for numbers, row in zip(vectors, fake_vectors(TEXTS, WIDTH, "m"), strict=True):
        assert numbers.shape == (WIDTH,) and np.abs(numbers).max() == 127
        np.testing.assert_allclose(numbers / np.linalg.norm(numbers), row, atol=0.01)
    refused = post(fake("perplexity"), "/v1/embeddings", {**body, "encoding_format": "float"})
    assert refused.status == 400
