"""Command lines that meta-train, evaluate and draw hyper-representations."""
