"""One call to a provider: paced, sent, timed, checked and classified."""
