"""Files: stored in parts, uploaded whole or in parts, read by range, and removed once nobody needs them."""
