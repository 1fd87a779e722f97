"""The endpoints that OpenAI's clients call: embeddings and models."""
