"""Ridge regression on small tables (Appendices B and C)."""
