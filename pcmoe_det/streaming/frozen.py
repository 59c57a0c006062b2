"""Notices a camera that goes on sending the very same picture."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["FrozenWatch"]

# Sensor noise changes every pixel, so a grid of one in 256 is enough; 0.2 ms a picture at 1920 x 1080.
_GRID_PIXELS = 16


class FrozenWatch:
    """Compares each picture with the one before, on a grid of pixels, byte for byte.

    An *episode* lasts from the moment the picture has not changed for ``after_seconds`` until it changes. It
    may go on through a reconnection. A camera that looks at a test card is left alone more and more: within
    an episode each next alarm takes twice as long as the one before.

    Args:
        after_seconds: How long the same picture is fine.
    """

    def __init__(self, after_seconds: float) -> None:
        self._after_seconds = after_seconds
        self._sample: NDArray[np.uint8] | None = None
        self._wait_seconds = after_seconds
        self._since_seconds = 0.0
        self.is_frozen = False
        """Whether an episode is going on."""
        self.episodes = 0
        """Episodes so far."""

    def alarm(self, image: NDArray[np.uint8], at_seconds: float, *, anew: bool = False) -> bool:
        """Take the next picture; whether its source should be opened again now.

        Args:
            image: ``[height, width, 3]`` uint8.
            at_seconds: When it came.
            anew: Whether the source was opened again before it; then it gets the whole time to change.
        """
        sample = image[::_GRID_PIXELS, ::_GRID_PIXELS]
        if self._sample is None or not np.array_equal(sample, self._sample):
            self._sample = sample.copy()
            self._since_seconds, self._wait_seconds = at_seconds, self._after_seconds
            self.is_frozen = False
            return False
        if anew:
            self._since_seconds = at_seconds
        if at_seconds - self._since_seconds < self._wait_seconds:
            return False
        if not self.is_frozen:
            self.is_frozen = True
            self.episodes += 1
        self._since_seconds = at_seconds
        self._wait_seconds *= 2
        return True
