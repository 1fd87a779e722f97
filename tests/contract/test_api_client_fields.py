"""Fields that SDKs of other servers send to the sync call: mapped where they mean the same, else refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from api.openai.client_fields import CLIENT_FIELDS, IGNORED_FIELDS, TAGS
from engine.observability.telemetry import UPSTREAM_CALLS
from tests.gateway import WIDTH, Gateway, close_gateway, error_of, open_gateway

leaving_nothing = pytest.mark.asyncio(loop_scope="session")
LONG = "word " * 40  # more than `fixed` takes
LARGE = [f"{i}" + "," * 144 for i in range(2_000)]  # too many marks for a body that is read at once

# Client and version, what it sends, and the call of ours that means the same.
SAME_AS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("infinity-client 0.0.78", {"dimensions": 0, "modality": "text", "encoding_format": "float"}, {}),
    ("voyageai 0.5.0", {"output_dimension": 4, "output_dtype": "float", "truncation": True, "input_type": None},
     {"dimensions": 4, "truncate": "end"}),
    ("voyageai 0.5.0", {"output_dimension": None, "output_dtype": None, "truncation": False}, {"truncate": "none"}),
    ("langchain-nvidia-ai-endpoints 1.5", {"truncate": "NONE", "input_type": "passage"}, {"input_type": "document"}),
    ("langchain-nvidia-ai-endpoints 1.5", {"truncate": "END", "input_type": "query", "dimensions": None},
     {"truncate": "end", "input_type": "query"}),
    ("cohere 7.3 by an OpenAI client", {"truncate": "End", "input_type": "search_query", "output_dimension": 8},
     {"truncate": "end", "input_type": "query", "dimensions": 8}),
    ("Bedrock's Cohere v4", {"truncate": "RIGHT"}, {"truncate": "end"}),
    ("LlamaIndex's JinaEmbedding", {"task": "retrieval.passage", "truncate": True, "embedding_type": "float",
     "normalized": True}, {"input_type": "document", "truncate": "end"}),
    ("Jina's API", {"task": "text-matching", "truncate": False}, {"input_type": "similarity"}),
    ("google-genai 3.4", {"task_type": "RETRIEVAL_QUERY", "output_dimensionality": 4},
     {"input_type": "query", "dimensions": 4}),
    ("@google/genai", {"taskType": "CODE_RETRIEVAL_QUERY", "outputDimensionality": 4},
     {"input_type": "code_query", "dimensions": 4}),
    ("nomic 3.9", {"task_type": "search_document", "dimensionality": 4}, {"input_type": "document", "dimensions": 4}),
    ("dashscope 2.0", {"text_type": "query", "dimension": 8}, {"input_type": "query", "dimensions": 8}),
    ("huggingface_hub 2.4", {"prompt_name": "query", "normalize": True, "truncation_direction": "right"},
     {"input_type": "query"}),
    ("vLLM 0.16 by openai's extra_body", {"truncate_prompt_tokens": -1, "truncation_side": "right",
     "embed_dtype": "float32"}, {"truncate": "end"}),
    ("mistralai 3.7", {"output_dtype": "float", "output_dimension": 8, "metadata": None}, {"dimensions": 8}),
    ("any client that sends null", {"foo": None, "input_type": None, "user": None, "encoding_format": None}, {}),
    ("litellm 1.109", {"user": "u", "tags": ["a", "b"]}, {"user": "u"}),
    ("an agreeing pair", {"dimensions": 4, "output_dimension": 4, "truncate": "end", "truncation": True},
     {"dimensions": 4, "truncate": "end"}),
]  # fmt: skip


def outcome(reply: httpx.Response) -> Any:
    assert reply.status_code == 200, reply.text
    body = reply.json()
    warned = [each["feature"] for each in body["providerMetadata"]["gateway"]["warnings"]]
    return body["data"], body["usage"], warned


@leaving_nothing
@pytest.mark.parametrize(("client", "sent", "same"), SAME_AS)
@pytest.mark.parametrize("given", [["a", "b"], LARGE], ids=["small", "large"])
async def test_what_a_client_sends_is_the_call_that_it_means(
    shared_gateway: Gateway, client: str, sent: Any, same: Any, given: list[str]
) -> None:
    """A large body is read another way."""
    left, right = [await shared_gateway.embed(given, **fields) for fields in (sent, same)]
    assert outcome(left) == outcome(right), client


@leaving_nothing
@pytest.mark.parametrize(
    "sent", [{"truncate": "END"}, {"truncate": True}, {"truncation": True}, {"truncate_prompt_tokens": -1}]
)
async def test_a_long_text_is_cut_where_a_client_says_so(shared_gateway: Gateway, sent: Any) -> None:
    reply = await shared_gateway.embed(LONG, model="fixed", **sent)
    assert reply.status_code == 200 and reply.json()["data"][0]["truncated"] is True


@leaving_nothing
@pytest.mark.parametrize("sent", [{"truncate": "NONE"}, {"truncate": False}, {"truncation": False}, {}])
async def test_a_long_text_is_refused_where_it_does_not(shared_gateway: Gateway, sent: Any) -> None:
    reply = await shared_gateway.embed(LONG, model="fixed", **sent)
    assert (reply.status_code, error_of(reply)["param"]) == (400, "input")


@leaving_nothing
@pytest.mark.parametrize(
    ("sent", "param", "says"),
    [
        ({"truncate": "START"}, "truncate", "only the end"),  # NIM's: the beginning would have to go
        ({"truncate": "LEFT"}, "truncate", "only the end"),
        ({"truncate": 1}, "truncate", "Supported"),
        ({"truncate_prompt_tokens": 256}, "truncate_prompt_tokens", "-1"),
        ({"truncation_side": "left"}, "truncation_side", "only the end"),
        ({"truncation": "yes"}, "truncation", "true"),
        ({"task": "RETRIEVAL_QUERY"}, "task", "input_type"),
        ({"task": "code.passage"}, "task", "input_type"),
        ({"task_type": "FACT_VERIFICATION"}, "task_type", "input_type"),
        ({"prompt_name": "s2p_query"}, "prompt_name", "input_type"),
        ({"modality": "image"}, "modality", "texts"),
        ({"output_dtype": "int8"}, "output_dtype", "float"),
        ({"normalize": False}, "normalize", "length 1"),
        ({"normalized": "true"}, "normalized", "length 1"),
        ({"output_dimension": "4"}, "output_dimension", "whole number"),
        ({"output_dimension": True}, "output_dimension", "whole number"),
        ({"dimension": -1}, "dimension", "whole number"),
        ({"dimensions": False}, "dimensions", "int"),
        ({"output_dimension": 5000}, "dimensions", "5000"),
        ({"dimensions": 4, "output_dimension": 8}, "output_dimension", "'dimensions'"),
        ({"truncate": "none", "truncation": True}, "truncation", "'truncate'"),
        ({"input_type": "query", "task": "retrieval.passage"}, "task", "'input_type'"),
        ({"task_type": "RETRIEVAL_QUERY", "input_type": "search_document"}, "input_type", "'task_type'"),
        ({"tags": ["a"], "providerOptions": {"gateway": {"tags": ["b"]}}}, "tags", "providerOptions.gateway.tags"),
        ({"dimensions": 4, "providerOptions": {"fake": {"outputDimensionality": 8}}},
         "providerOptions.fake.outputDimensionality", "contradicts"),
        ({"output_dimension": 4, "providerOptions": {"fake": {"dimensions": 8}}},
         "providerOptions.fake.dimensions", "contradicts"),
    ],
)  # fmt: skip
async def test_what_has_no_exact_meaning_here_is_refused_by_name(
    shared_gateway: Gateway, sent: Any, param: str, says: str
) -> None:
    before = upstream_calls()
    reply = await shared_gateway.embed("a", **sent)
    assert (reply.status_code, error_of(reply)["param"]) == (400, param)
    assert says in error_of(reply)["message"]
    assert upstream_calls() == before, "no call is made"


def upstream_calls() -> float:
    return sum(
        sample.value for sample in next(iter(UPSTREAM_CALLS.collect())).samples if sample.name.endswith("_total")
    )


@leaving_nothing
async def test_what_is_left_out_is_a_warning(shared_gateway: Gateway) -> None:
    data, _, warned = outcome(await shared_gateway.embed("a", metadata={"trace": "1"}))
    assert warned == ["metadata"] and len(data[0]["embedding"]) == WIDTH
    strict = {"gateway": {"strict": True}}
    refused = await shared_gateway.embed("a", metadata={"trace": "1"}, providerOptions=strict)
    assert (refused.status_code, error_of(refused)["param"]) == (400, "metadata")
    assert (await shared_gateway.embed("a", truncate="END", providerOptions=strict)).status_code == 200


@leaving_nothing
@pytest.mark.parametrize(
    ("name", "says"),
    [("seed", "providerOptions.<provider>.seed"), ("provider", "providerOptions"), ("stream", "Leave it out")],
)
async def test_an_unknown_field_says_where_to_send_it(shared_gateway: Gateway, name: str, says: str) -> None:
    unknown: dict[str, Any] = {name: False}
    reply = await shared_gateway.embed("a", **unknown)
    assert (reply.status_code, error_of(reply)["code"]) == (400, "unknown_parameter")
    assert says in error_of(reply)["message"]


@leaving_nothing
@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b'{"model":"tiny","input":"a","task":"retrieval.query","task":"retrieval.passage"}', "duplicate_key"),
        (b'{"model":"tiny","input":"a","truncate":"END","input":"b"}', "duplicate_key"),
        (b'{"model":"tiny","input":"a","x":null,"\\u0078":null}', "duplicate_key"),
        (b'{"model":"tiny","input":"a","truncate":"END"', "invalid_json"),
        (b'{"model":"tiny","input":"a","metadata":' + b"[" * 5_000 + b"]" * 5_000 + b"}", None),
        (b'{"model":"tiny","input":"a","truncate":' + b"[" * 5_000 + b"]" * 5_000 + b"}", None),
        (b'{"model":"tiny","input":"a","task":"\xff"}', "invalid_json"),
        (b'{"model":null,"input":"a","truncate":"END"}', "invalid_type"),
        (b'{"model":"tiny","input":null,"truncate":"END"}', "invalid_type"),
        (b'{"input":"a","truncate":"END"}', "missing_required_parameter"),
    ],
)
async def test_odd_bodies_with_a_clients_field(shared_gateway: Gateway, body: bytes, code: str | None) -> None:
    reply = await shared_gateway.client.post(
        "/v1/embeddings", content=body, headers={"content-type": "application/json"}
    )
    if code is None:
        assert reply.status_code in (200, 400), reply.text
    else:
        assert (reply.status_code, error_of(reply)["code"]) == (400, code)


@leaving_nothing
async def test_a_long_unknown_field_of_a_large_body_is_no_null(shared_gateway: Gateway) -> None:
    reply = await shared_gateway.embed(LARGE, foo="x" * 100_000, bar=[{}] * 40_000)
    assert (reply.status_code, error_of(reply)["code"]) == (400, "unknown_parameter")


async def test_unknown_fields_are_warnings_where_the_operator_says_so(data_dir: Path) -> None:
    gateway = await open_gateway(data_dir, unknown_parameters="warn")
    _, _, warned = outcome(await gateway.embed("a", seed=1, foo=None, provider={"order": ["x"]}, stream=False))
    assert warned == ["seed", "provider", "stream"]
    unknown: dict[str, Any] = {f"{'n' * 300}{i}": i for i in range(200)}
    _, _, many = outcome(await gateway.embed("a", **unknown))
    assert len(many) == 16 and all(len(name) == 100 for name in many)
    assert error_of(await gateway.embed("a", truncate="START"))["param"] == "truncate", "known, and not to be had"
    assert error_of(await gateway.embed("a", output_dtype="int8"))["param"] == "output_dtype"
    _, _, warned = outcome(await gateway.embed(LARGE, foo="x" * 100_000))
    assert warned == ["foo"]
    await close_gateway(gateway)


def test_each_mapping_is_tested_with_the_client_it_is_for() -> None:
    sent = {name for _, fields, _ in SAME_AS for name, value in fields.items() if value is not None}
    untested = {"outputDimension"}  # as `output_dimension`
    assert set(CLIENT_FIELDS) - sent == untested
    assert all(field.clients for field in CLIENT_FIELDS.values()) and set(IGNORED_FIELDS) == {"metadata"}
    assert TAGS in sent
    page = (Path(__file__).resolve().parents[2] / "docs" / "compatibility.md").read_text("utf-8")
    for name in (*CLIENT_FIELDS, *IGNORED_FIELDS, TAGS):
        assert f"`{name}`" in page, f"docs/compatibility.md does not speak of {name}"
