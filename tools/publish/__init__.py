"""Weights that come with bilevel-models: `python -m tools.publish` makes their two files."""
