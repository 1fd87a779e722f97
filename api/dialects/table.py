"""Every path of the dialects: routes, guard and documentation are made of this table."""

from __future__ import annotations

from api.dialects import cohere, gemini, ollama, tei, vercel, vercel_account
from api.dialects.cohere import CohereRoute
from api.dialects.dialect import DialectPath
from api.dialects.gemini import GeminiRoute
from api.dialects.ollama import OllamaRoute
from api.dialects.tei import TeiRoute
from api.dialects.vercel import VercelRoute
from api.dialects.vercel_account import VercelAccountRoute
from api.http.openapi import query_param

TEI_PARAMETERS = (query_param("model", "Name of the model, where the server has several"),)
GEMINI_PARAMETERS = (query_param("key", "The API key, in place of the header x-goog-api-key"),)
REPORT_PARAMETERS = (
    query_param("start_date", "First day, YYYY-MM-DD, of UTC"),
    query_param("end_date", "Last day"),
    query_param("group_by", "day (default), model, provider or user"),
    query_param("model", "Only of this model"),
    query_param("provider", "Only of this account"),
    query_param("user_id", "Only of this end user"),
)
TABLE = (
    DialectPath(
        "POST",
        "/v3/ai/embedding-model",
        vercel.create_vercel_embeddings_v3,
        VercelRoute,
        "Embed by @ai-sdk/gateway 3",
    ),
    DialectPath(
        "POST",
        "/v4/ai/embedding-model",
        vercel.create_vercel_embeddings_v4,
        VercelRoute,
        "Embed by @ai-sdk/gateway 4",
    ),
    DialectPath("GET", "/v3/ai/config", vercel.list_vercel_models_v3, VercelRoute, "The models, for @ai-sdk/gateway 3"),
    DialectPath("GET", "/v4/ai/config", vercel.list_vercel_models_v4, VercelRoute, "The models, for @ai-sdk/gateway 4"),
    DialectPath("POST", "/v2/embed", cohere.create_cohere_embeddings_v2, CohereRoute, "Cohere's embed, version 2"),
    DialectPath("POST", "/v1/embed", cohere.create_cohere_embeddings_v1, CohereRoute, "Cohere's embed, version 1"),
    DialectPath("POST", "/api/embed", ollama.create_ollama_embed, OllamaRoute, "Ollama's embed"),
    DialectPath(
        "POST", "/api/embeddings", ollama.create_ollama_embeddings, OllamaRoute, "Ollama's older call for one text"
    ),
    DialectPath("GET", "/api/tags", ollama.list_ollama_models, OllamaRoute, "The models, for Ollama's clients"),
    DialectPath("GET", "/api/version", ollama.get_ollama_version, OllamaRoute, "The version, for Ollama's clients"),
    DialectPath("POST", "/embed", tei.create_tei_embeddings, TeiRoute, "TEI's embed", TEI_PARAMETERS),
    DialectPath(
        "POST", "/tei/{model:path}/embed", tei.create_tei_model_embeddings, TeiRoute, "TEI's embed of one model"
    ),
    DialectPath("GET", "/info", tei.get_tei_info, TeiRoute, "TEI's facts of the model", TEI_PARAMETERS),
    DialectPath("GET", "/tei/{model:path}/info", tei.get_tei_model_info, TeiRoute, "TEI's facts of one model"),
    DialectPath(
        "POST",
        "/tei/{model:path}",
        tei.create_tei_model_root_embeddings,
        TeiRoute,
        "TEI's embed of one model by its URL",
    ),
    DialectPath(
        "POST",
        "/v1beta/models/{model:path}:embedContent",
        gemini.create_gemini_embedding,
        GeminiRoute,
        "Gemini's call for one text",
        GEMINI_PARAMETERS,
    ),
    DialectPath(
        "POST",
        "/v1beta/models/{model:path}:batchEmbedContents",
        gemini.create_gemini_embeddings,
        GeminiRoute,
        "Gemini's call for many texts",
        GEMINI_PARAMETERS,
    ),
    DialectPath(
        "POST",
        "/v1/models/{model:path}:embedContent",
        gemini.create_gemini_embedding_v1,
        GeminiRoute,
        "Gemini's call for one text, version 1",
        GEMINI_PARAMETERS,
    ),
    DialectPath(
        "POST",
        "/v1/models/{model:path}:batchEmbedContents",
        gemini.create_gemini_embeddings_v1,
        GeminiRoute,
        "Gemini's call for many texts, version 1",
        GEMINI_PARAMETERS,
    ),
    DialectPath(
        "GET",
        "/v1/credits",
        vercel_account.get_vercel_credits,
        VercelAccountRoute,
        "What the key's project has spent, for @ai-sdk/gateway",
    ),
    DialectPath(
        "GET",
        "/v1/generation",
        vercel_account.get_vercel_generation,
        VercelAccountRoute,
        "The record of one sync call, for @ai-sdk/gateway",
        (query_param("id", "The `generationId` of an answer"),),
    ),
    DialectPath(
        "GET",
        "/v1/report",
        vercel_account.get_vercel_report,
        VercelAccountRoute,
        "What the key's project has spent between two days, for @ai-sdk/gateway",
        REPORT_PARAMETERS,
    ),
)
