"""What `bilevel-eval` does: accuracies over fixed episodes, and the choice of the inner loop."""
