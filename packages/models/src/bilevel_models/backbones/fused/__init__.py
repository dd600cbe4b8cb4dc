"""Convolution, normalisation and ReLU in one autograd node; skip this on first reading."""
