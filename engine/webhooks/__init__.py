"""Webhooks: events of jobs and batches, and their signed delivery."""
