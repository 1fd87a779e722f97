"""Resources of one process: threads, memory, byte budgets, clocks, background loops and its name."""
