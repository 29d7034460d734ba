"""What the codecs of pictures in shards cost: `python -m tests.benchmarks.codecs FOLDER_OF_PICTURES [SIDE]`.

Prints a row of Markdown for each: bytes, time of one thread, and what is lost.
"""

import sys
import time
from pathlib import Path

import cv2
import numpy as np

from pipeline.store.codecs import codec, decode_picture

CODECS = ("png", "webp", "webp-95", "webp-90", "jpeg-95", "jpeg-90", "avif-90", "avif-80")


def pictures(folder: Path, side: int) -> list[np.ndarray]:
    """The middle squares of the pictures in a folder, (side, side, 3) RGB."""
    found = []
    for path in sorted(folder.iterdir()):
        picture = cv2.imread(str(path))
        if picture is None:
            continue
        height, width, _ = picture.shape
        least = min(height, width)
        top, left = (height - least) // 2, (width - least) // 2
        square = picture[top : top + least, left : left + least, ::-1]
        found.append(cv2.resize(square, (side, side), interpolation=cv2.INTER_AREA))
    return found


def main(folder: str, side: str = "512") -> None:
    shown = pictures(Path(folder), int(side))
    print("| codec | kB | bytes a pixel | encoding, ms | decoding, ms | PSNR |")
    print("| --- | --- | --- | --- | --- | --- |")
    for text in CODECS:
        own = codec(text)
        started = time.perf_counter()
        files = [own.encode(picture) for picture in shown]
        encoded = time.perf_counter()
        again = [decode_picture(file) for file in files]
        decoded = time.perf_counter()
        lost = []
        for picture, back in zip(shown, again, strict=True):
            lost.append(np.square(np.subtract(picture, back, dtype=float)).mean())
        mean = float(np.mean(lost))
        psnr = f"{10 * np.log10(255**2 / mean):.1f} dB" if mean else "lossless"
        size = sum(map(len, files)) / len(files)
        encoding = (encoded - started) / len(files) * 1e3
        decoding = (decoded - encoded) / len(files) * 1e3
        cells = [
            text,
            f"{size / 1e3:.0f}",
            f"{size / int(side) ** 2:.2f}",
            f"{encoding:.0f}",
            f"{decoding:.1f}",
            psnr,
        ]
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    cv2.setNumThreads(1)
    main(*sys.argv[1:])
