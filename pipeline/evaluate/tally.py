"""What is measured of the pictures of a method, added up piece by piece."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from pipeline.clips.held_out import Frame
from pipeline.evaluate import metrics
from pipeline.evaluate.instruments import Instruments
from pipeline.evaluate.sums import Columns, Table, Together


class Tally(Together):
    """The numbers of one method. Of a picture a few numbers are kept, so that its pixels can go."""

    def __init__(self, instruments: Instruments) -> None:
        self.instruments = instruments
        self.fid = instruments.fid.results()
        self.change = metrics.Change()
        self.measured, self.found, self.wanted = Table(), Table(), Table()
        super().__init__(
            fid=self.fid,
            change=self.change,
            measured=self.measured,
            found=self.found,
            wanted=self.wanted,
        )

    def add(
        self,
        image: Tensor,
        points: Tensor,
        sources: Sequence[Frame],
        drivings: Sequence[Frame],
        same: bool,
    ) -> None:
        """Measure pictures (N, 3, S, S) with landmarks (N, 70, 2), as `Instruments.reenactment` does."""
        self.measured.add(self.instruments.reenactment(image, points, sources, drivings, same))
        # How a face moves is compared over a clip: the driving frames of one person.
        if same:
            self.found.add(self.instruments.reader(image))
            self.wanted.add(self.instruments.motion(drivings))

    @property
    def numbers(self) -> Columns:
        """The numbers of each pair by name, float64 (N,)."""
        return self.measured.columns

    def means(self, clips: Sequence[str] | None) -> dict[str, Any]:
        """What the tables show of the method; `clips` are those of the pairs, if each is of one person."""
        scores: dict[str, Any] = {name: values.mean() for name, values in self.numbers.items()}
        if clips is not None:
            scores |= self.instruments.followed(self.found.columns, self.wanted.columns, clips)
        # A covariance needs two pictures.
        if self.fid.count > 1:
            scores[self.instruments.fid.name] = self.fid.distance()
        scores["response"] = self.change.rms
        if self.change.count:
            scores["response_face"] = self.change.concentration
        return scores
