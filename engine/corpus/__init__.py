"""Parses uploads into inputs."""
