"""What each call is billed for, and the rows that say so."""
