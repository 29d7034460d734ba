"""The first look at a clip: which frames are used, and where the faces in them are."""

import zlib
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from pipeline.config.params import Ingest
from pipeline.ingest.detector import NOT_UPRIGHT, Face
from pipeline.ingest.files import Rejected
from pipeline.ingest.report import GOOD, REJECTED, Row, is_ok, most_frequent
from pipeline.ingest.sequence import Clip
from pipeline.ingest.shots import choose_frames, find_shots, moves
from pipeline.ingest.video import Scan

# Shots that are tried before a clip is given up. Each costs the detection of `ingest.frames` faces.
MOST_SHOTS = 8
# A clip of which more than this share of the frames is damaged is rejected as a whole.
MOST_DAMAGE = 0.5


class ClipLook:
    """Looks at a clip; fills its row and those of the frames that were looked at.

    `faces` are those of the good frames by index, `sums` checksums of all pictures that were looked at.
    """

    def __init__(
        self,
        settings: Ingest,
        find: Callable[[np.ndarray], Face],
        row: Row,
        rows: list[Row],
    ):
        """`find`: the face in a picture, or Rejected. `row`, `rows`: of the clip and its frames, to be
        filled."""
        self.settings, self.find, self.row, self.rows = settings, find, row, rows
        self.sums: dict[int, int] = {}
        self.faces: dict[int, Face] = {}

    def at(self, clip: Clip) -> None:
        """Find the faces of at least `min_frames` frames of one shot. Raises Rejected."""
        self.row |= {"fps": clip.fps, "seconds": clip.seconds, "frames_declared": clip.declared}
        self.row |= {"width": clip.width, "height": clip.height}
        scan = clip.scan()
        refusals: list[Rejected] = []
        spans = self._spans(scan)
        for span in spans[:MOST_SHOTS]:
            try:
                self._look_at_shot(clip, scan, span)
            except Rejected as reason:
                refusals.append(reason)
                continue
            if len(spans) > 1:
                self.row["left_out"]["other shots"] = sum(map(len, spans)) - len(span)
            break
        self.rows.sort(key=lambda frame: frame["index"])
        self.row |= {"frames_decoded": len(self.rows), "frames_ok": len(self.faces)}
        if not self.faces:
            # The longest shot says best why the clip is not used.
            raise refusals[0]

    def reject_frames(self, reason: str) -> None:
        """Reject the frames that were good so far."""
        for frame in filter(is_ok, self.rows):
            frame |= {"status": REJECTED, "reason": reason}

    def _spans(self, scan: Scan) -> list[range]:
        """The shots, the longest first. Raises Rejected when there is none that could be used."""
        total = len(scan) + scan.damaged
        if not len(scan):
            raise Rejected("0 frames decoded")
        if scan.damaged > MOST_DAMAGE * total:
            raise Rejected(f"damaged: {scan.damaged} of {total} frames")
        shots = find_shots(scan)
        left_out = dict(shots.left_out)
        if scan.damaged:
            left_out["damaged"] = scan.damaged
        self.row |= {"cuts": shots.cuts, "left_out": left_out}
        if not shots.spans:
            raise Rejected("no face: the pictures are uniform")
        return shots.spans

    def _look_at_shot(
        self,
        clip: Clip,
        scan: Scan,
        span: range,
    ) -> None:
        """Find the faces of one shot; its frames are rejected when it cannot be used. Raises Rejected."""
        before = len(self.rows)
        try:
            self._check_shot(scan, span)
            self._look_at(clip, choose_frames(span, self.settings.frames))
            self._look_closer(clip)
            self._check_faces(self.rows[before:])
        except Rejected:
            self.faces.clear()
            self.reject_frames("its shot is rejected")
            raise

    def _check_shot(self, scan: Scan, span: range) -> None:
        count, needed = min(len(span), self.settings.frames), self.settings.min_frames
        if count < needed:
            raise Rejected(f"clip too short: {count} frames, {needed} needed")
        if not moves(scan, span):
            raise Rejected("nothing moves: all frames show one picture")

    def _look_closer(self, clip: Clip) -> None:
        """Look between the first and the last face, should there be few: somebody may come or go in a
        shot."""
        if not self.faces or len(self.faces) >= self.settings.min_frames:
            return
        inner = range(min(self.faces), max(self.faces) + 1)
        chosen = choose_frames(inner, self.settings.frames)
        self._look_at(clip, [index for index in chosen if index not in self.sums])

    def _look_at(self, clip: Clip, indices: Sequence[int]) -> None:
        """Look at single frames. Raises Rejected when the file ends before."""
        count = 0
        for index, seconds, picture in clip.frames(indices):
            count += 1
            clip_key = self.row["key"]
            frame: Row = {
                "key": f"{clip_key}-{index:06d}",
                "clip": clip_key,
                "index": index,
                "seconds": seconds,
                **GOOD,
            }
            self.rows.append(frame)
            self.sums[index] = zlib.crc32(picture)
            # The container has the size before the picture is turned and stretched.
            self.row["height"], self.row["width"] = picture.shape[:2]
            try:
                self.faces[index] = self.find(picture)
            except Rejected as reason:
                frame |= {"status": REJECTED, "reason": str(reason)}
        if count < len(indices):
            raise Rejected(f"truncated: {count} of {len(indices)} frames")

    def _check_faces(self, seen: Sequence[Row]) -> None:
        """Raise Rejected when the frames `seen` have too few faces, or most of them are not upright."""
        good, needed = len(self.faces), self.settings.min_frames
        reasons = Counter(frame["reason"] for frame in seen if not is_ok(frame))
        if not good:
            raise Rejected(reasons.most_common(1)[0][0])
        # An upside-down face passes for an upright one now and then.
        fallen = sum(count for reason, count in reasons.items() if reason.startswith(NOT_UPRIGHT))
        if fallen >= good:
            raise Rejected(f"{NOT_UPRIGHT}: in {fallen} of {len(seen)} frames")
        if good < needed:
            found = f"{good} good frames of {len(seen)}, {needed} needed"
            raise Rejected(f"clip too short: {found} ({most_frequent(seen)})")
