"""What engines share: reverse mode's way back, and the algebra of quadratic objectives."""
