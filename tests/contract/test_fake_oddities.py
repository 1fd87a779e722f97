"""What the fake of one vendor does and no other, and its adapter understands."""

from __future__ import annotations

import numpy as np
import pytest

from models.errors import (
    EncodingRefused,
    UpstreamError,
    UpstreamMisconfigured,
    UpstreamProtocolError,
    UpstreamRejected,
    UpstreamTooLarge,
    UpstreamUnavailable,
)
from providers import PROVIDERS
from providers.base import UpstreamRequest
from providers.fake import fake_vectors
from tests.contract.fake_calls import MODELS, NOW, TEXTS, WIDTH, exchange, of_tokens


class TestOddities:
    """What one vendor does and no other."""

    def test_azure_by_the_deployment_in_the_path(self) -> None:
        side = exchange("azure")
        side.route.account.settings["api_version"] = "2024-10-21"
        assert "/deployments/m/embeddings?api-version=" in side.request(TEXTS).url
        np.testing.assert_allclose(side.embed(TEXTS).vectors, fake_vectors(TEXTS, WIDTH, "m"), atol=1e-6)

    def test_voyage_has_a_cap_for_each_model_and_no_word_for_floats(self) -> None:
        texts = [of_tokens(30_000)] * 5
        with pytest.raises(UpstreamTooLarge):
            exchange("voyage", model="voyage-4-large").embed(texts)
        assert len(exchange("voyage", model="voyage-4").embed(texts).vectors) == 5
        with pytest.raises(EncodingRefused):
            exchange("voyage", encoding="float", body={"encoding_format": "float"}).embed(TEXTS)

    def test_cohere_refuses_a_blocked_token(self) -> None:
        with pytest.raises(UpstreamRejected):
            exchange("cohere", {"do": {"status": 498}}).embed(TEXTS)

    def test_vllm_before_2026_says_its_errors_without_a_wrapper(self) -> None:
        for oddities in ([], ["old_errors"]):
            with pytest.raises(UpstreamRejected) as refused:
                exchange("vllm", oddities=oddities).embed([of_tokens(513)])
            assert (refused.value.token_limit, refused.value.token_count) == (512, 513)

    def test_llamacpp_writes_a_number_that_is_none_as_null(self) -> None:
        with pytest.raises(UpstreamProtocolError):
            exchange("llamacpp", oddities=["null_numbers"], encoding="float").embed(TEXTS)

    def test_openrouter_answers_an_error_with_a_status_of_success(self) -> None:
        with pytest.raises(UpstreamUnavailable):
            exchange("openrouter", oddities=["error_in_success"]).embed(TEXTS)

    @pytest.mark.parametrize("status", [524, 529])
    def test_statuses_of_gateways(self, status: int) -> None:
        with pytest.raises(UpstreamError) as refused:
            exchange("openrouter", {"do": {"status": status}}).embed(TEXTS)
        assert refused.value.status == status and refused.value.retryable

    def test_nim_needs_an_input_type(self) -> None:
        side = exchange("nim")
        body = b'{"model":"m","input":["x"]}'
        request = UpstreamRequest("POST", "http://fake/v1/embeddings", side.request(TEXTS).headers, body)
        error = PROVIDERS["nim"].error_from(side.fake.answer(request, NOW).reply)
        assert type(error) is UpstreamMisconfigured

    def test_models_are_those_of_the_table(self) -> None:
        assert MODELS["voyage"] == "voyage-4-large"  # one of 120,000 tokens a call
