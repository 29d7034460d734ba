"""Long drivers in sections that overlap: to look at all frames at once takes memory by their square."""

from collections.abc import Callable

import numpy as np

# Frames: half a minute of film, faded over two seconds.
SECTION, OVERLAP = 900, 60


def in_sections(count: int, work: Callable[[slice], np.ndarray]) -> np.ndarray:
    """`work`, which gives rows (n, K) for a range of n of `count` frames, in sections of SECTION frames.

    Up to SECTION frames it is called once, and its result is returned as it is: that of the graph. Where two
    sections overlap, one fades into the other, so that nothing jumps.
    """
    if count <= SECTION:
        return work(slice(0, count))
    total = 0.0
    weight = np.zeros((count, 1))
    for start in range(0, count - OVERLAP, SECTION - OVERLAP):
        stop = min(start + SECTION, count)
        rows = slice(start, stop)
        values = work(rows)
        if start == 0:
            _, width = values.shape
            total = np.zeros((count, width))
        share = _share(len(values))
        total[rows] += share * values
        weight[rows] += share
    return total / weight


def _share(count: int) -> np.ndarray:
    """How much each frame of a section counts, (count, 1): it rises over OVERLAP frames and falls again."""
    rising = np.arange(1, count + 1) / OVERLAP
    falling = rising[::-1]
    nearer_end = np.minimum(rising, falling)
    share = np.minimum(1.0, nearer_end)
    return share[:, None]


def with_rotations(labels_N437: np.ndarray) -> np.ndarray:
    """Labels whose cameras are rotations again after fading: the nearest ones to what is there. float32."""
    labels = labels_N437.astype(np.float64)
    cameras = labels[:, :16].reshape(-1, 4, 4)
    # The mean of two rotations shrinks a little; without its singular values it is a rotation.
    faded = cameras[:, :3, :3]
    left, _, right = np.linalg.svd(faded)
    cameras[:, :3, :3] = left @ right
    labels[:, :16] = cameras.reshape(-1, 16)
    return labels.astype(np.float32)
