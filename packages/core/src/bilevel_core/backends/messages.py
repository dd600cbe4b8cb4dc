"""What the adapters say in the same words."""

__all__ = ["ONLY_ONCE"]

ONLY_ONCE = (
    "the derivative of solve_inner by this engine cannot be differentiated once more: take "
    "engine=Unrolled(), whose graph is the framework's own"
)
