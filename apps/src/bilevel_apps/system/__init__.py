"""Files, terminal, signals, processors and processes."""
