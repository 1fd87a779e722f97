"""Formats in: bytes that arrive become inputs."""
