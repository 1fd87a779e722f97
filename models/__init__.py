"""The nouns: tables, value types, states and errors. Imports nothing of ours."""
