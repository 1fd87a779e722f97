"""Metrics, logs and failpoints."""
