"""What hyper-iterations report, averaged between two entries of the log."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import final

__all__ = ["Meter"]


@final
@dataclass
class Meter:
    """Averages of what hyper-iterations report, and their speed."""

    sums: dict[str, float] = field(default_factory=dict)
    count: int = 0
    episodes: int = 0
    since: float = field(default_factory=time.monotonic)
    shown: dict[str, float] = field(default_factory=dict)

    def add(self, values: dict[str, float], episodes: int) -> None:
        """Take in one hyper-iteration."""
        for key, value in values.items():
            self.sums[key] = self.sums.get(key, 0.0) + value
        self.count += 1
        self.episodes += episodes
        self.shown = values

    def take(self) -> dict[str, float]:
        """Return the averages and begin anew."""
        now = time.monotonic()
        averages = {key: value / self.count for key, value in self.sums.items()}
        averages["speed/episodes_per_second"] = self.episodes / max(1e-9, now - self.since)
        self.sums, self.count, self.episodes, self.since = {}, 0, 0, now
        return averages

    def note(self, best_accuracy: float) -> str:
        """Return a few words for the progress bar."""
        text = f"loss {self.shown['train/loss']:.3f}"
        return text if best_accuracy < 0 else f"{text}, best validation {100 * best_accuracy:.1f} %"
