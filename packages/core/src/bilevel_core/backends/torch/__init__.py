"""PyTorch."""

from bilevel_core.backends.torch.adapter import TorchBackend

__all__ = ["TorchBackend"]
