"""URLs of databases and brokers, and what is wrong with a connection."""
