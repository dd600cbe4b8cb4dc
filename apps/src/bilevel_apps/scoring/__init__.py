"""Accuracies of a task, and of many inner loops at once, over episodes."""
