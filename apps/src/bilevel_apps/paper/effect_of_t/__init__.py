"""The effect of T, the number of inner steps (section 5.1)."""
