"""What `bilevel-predict` and `bilevel-export` do: a run's network on a user's own pictures."""
