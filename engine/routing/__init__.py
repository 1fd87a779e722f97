"""Which route is called next, and what is known of each: health, outages, credentials, drift."""
