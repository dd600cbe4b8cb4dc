"""What every network asks of its sizes."""

from __future__ import annotations

__all__ = ["check_sizes", "halved"]


def check_sizes(**sizes: int) -> None:
    """Refuse sizes below one.

    Raises:
        ValueError: one of them is.
    """
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"{name}={value} is too small: use at least 1")


def halved(image_size: int, times: int, *, up: bool) -> int:
    """Return what so many halvings leave of an image's side, rounding up or down each time.

    Raises:
        ValueError: nothing is left.
    """
    check_sizes(image_size=image_size)
    least: int = 2**times
    left = -(-image_size // least) if up else image_size // least
    if left < 1:
        raise ValueError(
            f"image_size={image_size} is too small for {times} halvings: use at least {least}"
        )
    return left
