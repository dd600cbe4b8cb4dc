"""Episodes: which images each has, their augmentation, and loading them in time."""
