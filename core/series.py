"""A curve of any length in bounded memory. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Series:
    """Points (x rising) merged into at most `capacity` bins of (x of the last point, mean, min, max).

    Each bin holds `width` points; when the bins are full, neighbours merge and the width doubles: O(1) a point.
    """

    capacity: int = 512
    width: int = 1
    bins: list[list[float]] = field(default_factory=list)
    count: int = 0
    """Points in the last, still open bin."""

    def add(self, x: float, y: float) -> None:
        if self.bins and self.count < self.width:
            last = self.bins[-1]
            last[0] = x
            last[1] += (y - last[1]) / (self.count + 1)
            last[2], last[3] = min(last[2], y), max(last[3], y)
            self.count += 1
            return
        if len(self.bins) >= self.capacity:
            self._halve()
        self.bins.append([x, y, y, y])
        self.count = 1

    def cut(self, x: float) -> None:
        """Forget every bin that ends after x: a resumed run goes on from an earlier step."""
        kept = [b for b in self.bins if b[0] <= x]
        if len(kept) < len(self.bins):
            self.bins, self.count = kept, self.width

    def until(self, x: float) -> float:
        """Return the mean of the last bin that ends by x; of the first where all end later."""
        return ([b[1] for b in self.bins if b[0] <= x] or [self.bins[0][1]])[-1]

    def _halve(self) -> None:
        pairs = zip(self.bins[::2], self.bins[1::2], strict=True)
        self.bins = [[b[0], (a[1] + b[1]) / 2, min(a[2], b[2]), max(a[3], b[3])] for a, b in pairs]
        self.width *= 2
        self.count = self.width
