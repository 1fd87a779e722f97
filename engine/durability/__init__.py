"""State that survives a killed process: results on disk and the journal of calls in flight."""
