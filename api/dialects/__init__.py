"""Dialects: the requests and replies of clients that are not OpenAI's, over the same sync call.

Each file translates one format: a body into an `EmbeddingCall`, an `EmbeddingOutcome` into a reply, an error into the
vendor's envelope with our status. Nothing here calls a provider, counts or decides: `table.py` names the paths.
"""
