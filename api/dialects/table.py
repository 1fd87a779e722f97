"""Every path of the dialects: routes, guard and documentation are made of this table."""

from __future__ import annotations

from api.dialects import vercel
from api.dialects.dialect import DialectPath
from api.dialects.vercel import VercelRoute

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
)
