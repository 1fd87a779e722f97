"""URLs of databases and brokers, and causes of failed connections."""
