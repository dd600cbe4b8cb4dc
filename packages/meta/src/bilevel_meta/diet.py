"""What a method is trained on, apart from what it is evaluated on."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from typing import final

__all__ = ["Diet"]


@final
@dataclass(frozen=True, kw_only=True)
class Diet:
    """The episodes of one hyper-iteration.

    Attributes:
        way: classes an episode.
        shot: support images a class, or the least and the most: then each hyper-iteration draws one
            number for all its episodes.
        query: query images a class.
        episodes: how many, the meta-batch.

    Raises:
        ValueError: a number below one, fewer than two classes, or a range that is none.
    """

    way: int = 5
    shot: int | tuple[int, int] = 1
    query: int = 15
    episodes: int = 4

    def __post_init__(self) -> None:
        low, high = self.shot_range
        numbers = {"shot": low, "query": self.query, "episodes": self.episodes}
        for name, value in numbers.items():
            if value < 1:
                raise ValueError(f"{name}={value} is too small: use at least 1")
        if self.way < 2:
            raise ValueError(f"way={self.way} is too small: use at least 2 classes")
        if low > high:
            raise ValueError(f"shot={self.shot}: the range is empty: give (least, most)")

    @property
    def shot_range(self) -> tuple[int, int]:
        """Return the least and the most support images a class."""
        return self.shot if isinstance(self.shot, tuple) else (self.shot, self.shot)

    def shot_of(self, iteration: int, seed: int) -> int:
        """Return the shot of a hyper-iteration: a function of its number and the seed alone."""
        low, high = self.shot_range
        digest = sha256(f"shot {seed} {iteration}".encode()).digest()
        return low + int.from_bytes(digest[:8]) % (high - low + 1)
