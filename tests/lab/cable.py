"""A long cable between two network devices, for links with latency: no kernel is sure to have one.

The program gets the latency in seconds and the descriptors of two TAP devices. It hands each Ethernet frame
of the one to the other when the latency has passed, in both directions, until its input ends.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
import time
from collections import deque

FRAME = 65536
AT_ONCE = 64
_INPUT = 0


class Direction:
    """The frames on their way from one device to the other."""

    def __init__(self, source: int, target: int, latency: float) -> None:
        self.source = source
        self._target = target
        self._latency = latency
        self._under_way: deque[tuple[float, bytes]] = deque()

    @property
    def next(self) -> float | None:
        """When the next frame arrives, if there is one."""
        return self._under_way[0][0] if self._under_way else None

    def accept(self) -> None:
        """Take what has been sent; not everything at once, as the other direction waits."""
        with contextlib.suppress(BlockingIOError):
            for _ in range(AT_ONCE):
                self._under_way.append((time.monotonic() + self._latency, os.read(self.source, FRAME)))

    def deliver(self) -> None:
        """Hand over what has arrived."""
        now = time.monotonic()
        while self._under_way and self._under_way[0][0] <= now:
            frame = self._under_way.popleft()[1]
            # A device that is down or full loses frames, as a real one does.
            with contextlib.suppress(OSError):
                os.write(self._target, frame)


def main(latency: float, first: int, second: int) -> None:
    """Run until the input ends."""
    directions = [Direction(first, second, latency), Direction(second, first, latency)]
    for each in directions:
        os.set_blocking(each.source, False)
    devices = {each.source: each for each in directions}
    while True:
        due = [each.next for each in directions if each.next is not None]
        timeout = max(0.0, min(due) - time.monotonic()) if due else None
        readable, _, _ = select.select([_INPUT, *devices], [], [], timeout)
        if _INPUT in readable:
            return
        for device in readable:
            devices[device].accept()
        for each in directions:
            each.deliver()


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
