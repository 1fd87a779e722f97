"""What one process has for itself: threads, memory, budgets of bytes, clocks, loops and its name."""
