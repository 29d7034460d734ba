"""The sound of a video, as SyncNet hears it."""

from pathlib import Path

import av
import numpy as np
from av.error import FFmpegError

from model.instruments.syncnet import RATE


def read_sound(file: Path) -> np.ndarray | None:
    """Mono, int16 at 16 kHz, from the first picture on; None when the file has no sound that can be read."""
    parts, heard_from = [], 0.0
    try:
        with av.open(str(file), metadata_errors="ignore") as film:
            if not film.streams.audio or not film.streams.video:
                return None
            pictures = film.streams.video[0]
            shown_from = float((pictures.start_time or 0) * pictures.time_base)
            resampler = av.AudioResampler("s16", "mono", RATE)
            for frame in film.decode(film.streams.audio[0]):
                if not parts:
                    heard_from = float(frame.time or 0)
                parts += resampler.resample(frame)
            # What the filter still holds back.
            parts += resampler.resample(None)
    except FFmpegError:
        return None
    if not parts:
        return None
    samples = np.concatenate([part.to_ndarray()[0] for part in parts])
    late = round((heard_from - shown_from) * RATE)
    if late < 0:
        return samples[-late:]
    return np.concatenate([np.zeros(late, np.int16), samples])
