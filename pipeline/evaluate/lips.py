"""How lips move with the driving sound: SyncNet on whole clips, where videos have sound and all their frames.

The number of real frames stands beside that of results, as it is what the instrument can find at most.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor

from model.instruments import syncnet
from pipeline.clips.held_out import Frame, HeldOutClips, stack_frames
from pipeline.evaluate.instruments import Instruments
from pipeline.evaluate.kept import Kept
from pipeline.evaluate.methods import Synthesizers
from pipeline.evaluate.published import Faces
from pipeline.evaluate.sound import read_sound
from pipeline.evaluate.sums import Table

# Between two frames that are shown one after the other; a gap is more than one and a half of these.
FRAME_SECONDS = 1 / syncnet.FPS
# Clips of fewer windows are compared with silence more than with sound.
LEAST_FRAMES = 2 * syncnet.SHIFTS + syncnet.WINDOW
# Brows to chin are about three quarters of the height that a face detector's box has.
BROW_TO_CHIN = 0.75
# So many frames are drawn together, which bounds the memory that it takes.
AT_ONCE = 64

Score = dict[str, float]


def lips(
    instruments: Instruments,
    synthesizers: Synthesizers,
    clips: HeldOutClips,
    ingest: Path,
    videos: Path,
    kept: Kept,
) -> dict[str, Score]:
    """LSE-C and LSE-D, means over clips: of Psi, of Psi with another person's source, of the real frames.

    The source is the first frame of the clip itself, or of the clip before. `videos` is the folder that the
    tables in `ingest` name files of, `kept` has what an earlier run has found. Empty without SyncNet, or when
    no clip has sound and all frames.
    """
    network = instruments.published.network("syncnet")
    if network is None:
        return {}
    found, names = Table(), list(clips.clips)
    # Each with the clip before it; that of the first one is the last.
    neighbours = list(zip([names[-1], *names], names, strict=False))
    pieces = [[pair] for pair in neighbours]

    def hear(piece: list[tuple[str, str]]) -> np.ndarray | None:
        return read_sound(videos / _file(ingest, piece[0][1]))

    for [(other, clip)], sound in kept.left("lips", pieces, found, hear, "clips"):
        keys = clips.clips[clip]
        seconds = _seconds(ingest, clip, keys)
        if sound is None or not is_whole(seconds):
            continue
        # SyncNet knows 25 frames a second; of another rate the nearest frame is shown.
        times = np.arange(seconds[0], seconds[-1], FRAME_SECONDS)
        shown = np.abs(seconds[:, None] - times).argmin(0)
        heard = sound[round(seconds[0] * syncnet.RATE) :]
        sources = {"psi": clip, "cross": other, "real": ""}
        for method, source in sources.items():
            person = clips.frame(clips.clips[source][0]) if source else None
            crops = _crops(instruments, synthesizers, clips, keys, person, shown)
            if min(len(crops), len(heard) // syncnet.SAMPLES) >= LEAST_FRAMES:
                video, audio = syncnet.embeddings(network, crops.to(instruments.device), heard)
                _, distance, confidence = syncnet.sync_score(syncnet.distances(video, audio))
                score = {"sync_confidence": confidence, "sync_distance": distance}
                found.add({f"{method}/{name}": np.array([value]) for name, value in score.items()})
    means: dict[str, Score] = {}
    for column, values in found.columns.items():
        method, name = column.split("/")
        means.setdefault(method, {})[name] = values.mean()
    return means


def is_whole(seconds_N: np.ndarray) -> bool:
    """Whether frames follow each other without a gap, at 25 a second or more."""
    return len(seconds_N) > 1 and bool(np.diff(seconds_N).max() < 1.5 * FRAME_SECONDS)


def _crops(
    instruments: Instruments,
    synthesizers: Synthesizers,
    clips: HeldOutClips,
    keys: Sequence[str],
    source: Frame | None,
    shown: np.ndarray,
) -> Tensor:
    """The lower faces of a clip's frames, or of `source` under their motion, uint8 (T, 3, 224, 224).

    `shown` numbers the frames that are looked at.
    """
    pictures, boxes = [], []
    for start in range(0, len(keys), AT_ONCE):
        drivings = [clips.frame(key) for key in keys[start : start + AT_ONCE]]
        cameras = stack_frames(drivings, "camera")
        if source is None:
            sources, images = drivings, stack_frames(drivings, "image")
        else:
            sources = [source] * len(drivings)
            images = synthesizers.draw("psi", sources, drivings, cameras[:, None]).image
        points = instruments.reenacted_landmarks(sources, drivings, cameras)
        for picture, pixels in Faces(images, points).each():
            # The network takes blue first.
            pictures.append(picture[:, :, ::-1])
            boxes.append(face_box(pixels))
    crops = syncnet.track_crops([pictures[place] for place in shown], np.stack(boxes)[shown])
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)


def face_box(points_N2: np.ndarray) -> np.ndarray:
    """About what a face detector finds around landmarks: left, top, right, bottom."""
    left, top = points_N2.min(0)
    right, bottom = points_N2.max(0)
    return np.array([left, bottom - (bottom - top) / BROW_TO_CHIN, right, bottom])


def _seconds(
    ingest: Path,
    clip: str,
    keys: Sequence[str],
) -> np.ndarray:
    """When frames are shown, from the first picture of their file on, (N,)."""
    columns, where = ["key", "seconds"], [("clip", "=", clip)]
    rows = pq.read_table(ingest / "frames.parquet", columns=columns, filters=where).to_pylist()
    stamps = {row["key"]: row["seconds"] for row in rows}
    return np.array([stamps[key] for key in keys])


def _file(ingest: Path, clip: str) -> str:
    rows = pq.read_table(ingest / "clips.parquet", columns=["file"], filters=[("key", "=", clip)])
    return rows["file"][0].as_py()
