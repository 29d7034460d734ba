"""SyncNet: how lips move with sound (syncnet_python, MIT; weights syncnet_v2.model)."""

import math
from collections.abc import Sequence

import cv2
import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from scipy.fft import dct
from scipy.signal import medfilt
from torch import Tensor, nn
from torch.nn import functional as F

RATE = 16_000  # samples a second of the sound
FPS = 25  # of the film; other films must be resampled first
SAMPLES = RATE // FPS  # of a frame
INPUT = 224
WINDOW = 5  # frames that are looked at together, and four times as many columns of MFCC
COLUMNS = 4  # of MFCC for a frame
EMBEDDING = 1024
SHIFTS = 15  # frames that the sound is shifted by to either side, as the scripts do
TINY = 1e-6  # added to every component of a difference, as torch's pairwise distance does
# MFCC: samples of a stretch and between two, points of the transform, triangles, coefficients, lifter.
STRETCH, STEP, POINTS = 400, 160, 512
TRIANGLES, COEFFICIENTS, LIFTER = 26, 13, 22
PRE_EMPHASIS = 0.97
MEDIAN = 13  # frames over which a box is smoothed
CROP_SCALE = 0.4
GREY = 110  # of what a crop shows outside of the picture


class SyncNet(nn.Module):
    """Embeddings (B, 1024) of sound and of lips, not normalised."""

    def __init__(self) -> None:
        super().__init__()
        # Numbers are places in the published lists, so that the pooling that does nothing has to stay.
        self.netcnnaud = nn.Sequential(
            *_flat(1, 64, 3, padding=1),
            nn.Identity(),
            *_flat(64, 192, 3, padding=1),
            nn.MaxPool2d(3, stride=(1, 2)),
            *_flat(192, 384, 3, padding=1),
            *_flat(384, 256, 3, padding=1),
            *_flat(256, 256, 3, padding=1),
            nn.MaxPool2d(3, stride=2),
            *_flat(256, 512, (5, 4)),
        )
        self.netcnnlip = nn.Sequential(
            *_deep(3, 96, (5, 7, 7), stride=(1, 2, 2)),
            nn.MaxPool3d((1, 3, 3), stride=(1, 2, 2)),
            *_deep(96, 256, (1, 5, 5), stride=(1, 2, 2), padding=(0, 1, 1)),
            nn.MaxPool3d((1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1)),
            *_deep(256, 256, (1, 3, 3), padding=(0, 1, 1)),
            *_deep(256, 256, (1, 3, 3), padding=(0, 1, 1)),
            *_deep(256, 256, (1, 3, 3), padding=(0, 1, 1)),
            nn.MaxPool3d((1, 3, 3), stride=(1, 2, 2)),
            *_deep(256, 512, (1, 6, 6)),
        )
        self.netfcaud = _top()
        self.netfclip = _top()

    def audio(self, mfcc_B1CT: Tensor) -> Tensor:
        """Of 20 columns of MFCC, (B, 1, 13, 20)."""
        return self.netfcaud(self.netcnnaud(mfcc_B1CT).flatten(1))

    def lips(self, frames_B3THW: Tensor) -> Tensor:
        """Of five frames (B, 3, 5, 224, 224): blue, green, red, 0 to 255."""
        return self.netfclip(self.netcnnlip(frames_B3THW).flatten(1))


def _flat(*sizes, **settings) -> list[nn.Module]:
    convolution = nn.Conv2d(*sizes, **settings)
    return [convolution, nn.BatchNorm2d(convolution.out_channels), nn.ReLU()]


def _deep(*sizes, **settings) -> list[nn.Module]:
    convolution = nn.Conv3d(*sizes, **settings)
    return [convolution, nn.BatchNorm3d(convolution.out_channels), nn.ReLU()]


def _top() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(512, 512),
        nn.BatchNorm1d(512),
        nn.ReLU(),
        nn.Linear(512, EMBEDDING),
    )


def mfcc(sound_N: np.ndarray) -> np.ndarray:
    """Mel-frequency cepstral coefficients of int16 sound at 16 kHz, (M, 13) float64, 100 a second.

    As python_speech_features makes them: no window, no preceding silence, log energy in the first place.
    """
    sound = sound_N.astype(np.float64)
    before = np.append(0.0, sound[:-1])
    emphasised = sound - PRE_EMPHASIS * before
    more = max(0, len(sound) - STRETCH)
    steps = math.ceil(more / STEP)
    # Silence fills the last stretch.
    padded = np.zeros(steps * STEP + STRETCH)
    padded[: len(sound)] = emphasised
    stretches = sliding_window_view(padded, STRETCH)[::STEP]

    spectrum = np.fft.rfft(stretches, POINTS)
    power = np.abs(spectrum) ** 2 / POINTS
    energy = _above_zero(power.sum(1))
    mel = _above_zero(power @ _mel_triangles().T)
    cepstrum = dct(np.log(mel), norm="ortho")
    # The lifter brings the higher coefficients to about the size of the lower ones.
    place = np.arange(COEFFICIENTS)
    lift = 1 + LIFTER / 2 * np.sin(np.pi * place / LIFTER)
    coefficients = lift * cepstrum[:, :COEFFICIENTS]
    coefficients[:, 0] = np.log(energy)
    return coefficients


def _above_zero(values: np.ndarray) -> np.ndarray:
    """A logarithm needs something where there is silence."""
    least = np.finfo(np.float64).eps
    return np.where(values == 0, least, values)


def _mel_triangles() -> np.ndarray:
    """Weights of frequencies for each triangle, (26, 257); corners are evenly spaced in mel."""
    # mel = 2595 log10(1 + Hz / 700), from 0 to half of the rate.
    highest = 2595 * math.log10(1 + RATE / 2 / 700)
    mels = np.linspace(0, highest, TRIANGLES + 2)
    hertz = 700 * (10 ** (mels / 2595) - 1)
    corners = np.floor((POINTS + 1) * hertz / RATE)
    places = np.arange(POINTS // 2 + 1)
    weights = np.zeros((TRIANGLES, len(places)))
    for number, row in enumerate(weights):
        low, middle, high = corners[number : number + 3]
        rising = (places >= low) & (places < middle)
        falling = (places >= middle) & (places < high)
        row[rising] = (places[rising] - low) / (middle - low)
        row[falling] = (high - places[falling]) / (high - middle)
    return weights


@torch.no_grad()
def embeddings(
    network: SyncNet,
    frames_TCHW: Tensor,
    sound_N: np.ndarray,
    at_once: int = 16,
) -> tuple[Tensor, Tensor]:
    """Lips and sound of a clip of 25 frames a second, (T', 1024) each.

    `frames_TCHW` are face crops of 224 pixels, blue first, 0 to 255; `sound_N` is int16 at 16 kHz and begins
    with the first frame. Raises ValueError when the clip is shorter than a window.
    """
    frames = min(len(frames_TCHW), len(sound_N) // SAMPLES)
    # The scripts leave out the last window that would fit.
    windows = frames - WINDOW
    if windows < 1:
        raise ValueError(f"a clip of {frames} frames with sound is too short for SyncNet")
    coefficients = torch.from_numpy(mfcc(sound_N).T).float()
    # A view of all windows costs no memory; a batch of them is copied when it is computed.
    shown = frames_TCHW.unfold(0, WINDOW, 1)
    heard = coefficients.unfold(1, COLUMNS * WINDOW, COLUMNS)
    lips, sounds = [], []
    for start in range(0, windows, at_once):
        some = slice(start, min(start + at_once, windows))
        film = shown[some].permute(0, 1, 4, 2, 3).float()
        columns = heard[:, some].transpose(0, 1)[:, None]
        lips.append(network.lips(film))
        sounds.append(network.audio(columns.to(film.device)))
    return torch.cat(lips), torch.cat(sounds)


def distances(
    lips_TE: Tensor,
    sound_TE: Tensor,
    shifts: int = SHIFTS,
) -> Tensor:
    """Of each window from the sound of itself and of `shifts` windows to either side, (T, 2 shifts + 1).

    Beyond its ends the sound is zero, so that clips of fewer than two times `shifts` windows say little.
    """
    padded = F.pad(sound_TE, (0, 0, shifts, shifts))
    columns = []
    for shift in range(2 * shifts + 1):
        heard = padded[shift : shift + len(lips_TE)]
        difference = lips_TE - heard + TINY
        columns.append(difference.norm(dim=1))
    return torch.stack(columns, 1)


def sync_score(distances_TS: Tensor) -> tuple[int, float, float]:
    """Offset in frames, LSE-D (the least mean distance) and LSE-C (the median's height above it)."""
    means = distances_TS.mean(0)
    least, place = means.min(0)
    offset = len(means) // 2 - int(place)
    return offset, float(least), float(means.median() - least)


def smooth_track(boxes_T4: np.ndarray) -> np.ndarray:
    """Middle (x, y) and half side of face boxes (left, top, right, bottom), smoothed, (T, 3).

    The median counts zeros beyond the ends, as the published program does.
    """
    left, top, right, bottom = boxes_T4.T
    middle_x = (left + right) / 2
    middle_y = (top + bottom) / 2
    half = np.maximum(bottom - top, right - left) / 2
    smooth = [medfilt(row, MEDIAN) for row in (middle_x, middle_y, half)]
    return np.stack(smooth, 1)


def track_crops(frames: Sequence[np.ndarray], boxes_T4: np.ndarray) -> list[np.ndarray]:
    """The lower face of each frame (H, W, 3), uint8 (224, 224, 3) in the same order of colours.

    It is a square of 1.4 boxes that begins at the upper edge of the face's box.
    """
    crops = []
    for frame, (x, y, half) in zip(frames, smooth_track(boxes_T4), strict=True):
        # From the middle of the box: half of it upwards, and to the sides and below it more than that.
        aside = half * (1 + CROP_SCALE)
        below = half * (1 + 2 * CROP_SCALE)
        border = int(below)
        edge = (border, border)
        padded = np.pad(frame, (edge, edge, (0, 0)), constant_values=GREY)
        across, down = x + border, y + border
        rows = slice(int(down - half), int(down + below))
        columns = slice(int(across - aside), int(across + aside))
        crops.append(cv2.resize(padded[rows, columns], (INPUT, INPUT)))
    return crops
