"""Webhook endpoints of a project, and the deliveries to them."""
