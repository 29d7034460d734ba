"""What is measured of the pictures of a method, added up piece by piece."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from pipeline.clips.held_out import Frame
from pipeline.evaluate import metrics
from pipeline.evaluate.instruments import Instruments

Columns = dict[str, np.ndarray]


class Tally:
    """The numbers of one method. Of a picture a few numbers are kept, so that its pixels can go."""

    def __init__(self, instruments: Instruments) -> None:
        self.instruments = instruments
        self.fid = instruments.fid.results()
        self.change = metrics.Change()
        self.parts: list[Columns] = []
        self.found: list[Columns] = []
        self.wanted: list[Columns] = []
        self.clips: list[str] = []

    def add(
        self,
        image: Tensor,
        points: Tensor,
        sources: Sequence[Frame],
        drivings: Sequence[Frame],
        same: bool,
    ) -> None:
        """Measure pictures (N, 3, S, S) with landmarks (N, 70, 2), as `Instruments.reenactment` does."""
        self.parts.append(self.instruments.reenactment(image, points, sources, drivings, same))
        # How a face moves is compared over a clip: the driving frames of one person.
        if same:
            self.found.append(self.instruments.reader(image))
            self.wanted.append(self.instruments.motion(drivings))
            self.clips += [frame.clip for frame in drivings]

    @property
    def numbers(self) -> Columns:
        """The numbers of each pair by name, float64 (N,)."""
        return _joined(self.parts)

    def means(self, same: bool) -> dict[str, Any]:
        """What the tables show of the method."""
        scores: dict[str, Any] = {name: values.mean() for name, values in self.numbers.items()}
        if same:
            found, wanted = _joined(self.found), _joined(self.wanted)
            scores |= self.instruments.followed(found, wanted, self.clips)
        # A covariance needs two pictures.
        if self.fid.count > 1:
            scores[self.instruments.fid.name] = self.fid.distance()
        scores["response"] = self.change.rms
        if self.change.count:
            scores["response_face"] = self.change.concentration
        return scores


def _joined(parts: Sequence[Columns]) -> Columns:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
