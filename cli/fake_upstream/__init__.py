"""A fake OpenAI-compatible provider as a process of its own."""
