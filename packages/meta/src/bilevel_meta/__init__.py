"""Meta-learning methods under one contract."""
