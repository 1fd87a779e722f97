"""Measurements of the product as a whole, against a fake upstream. Nothing here is imported by the product."""
