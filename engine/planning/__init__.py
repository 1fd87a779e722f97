"""From inputs to batches: tokens, limits, packing. Pure."""
