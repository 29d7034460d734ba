"""Small inputs of the avatar: raw networks, a drawn photo, drawn videos with and without sound."""

import os
import subprocess
import sys
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image

from model.psi.motion_encoder import MotionEncoder
from model.psi.network import Psi
from pipeline.avatar.animate import Film, animate
from pipeline.avatar.animator import Weights
from pipeline.avatar.film_maker import Look
from pipeline.config.params import Params
from pipeline.config.scales import scale_params
from pipeline.core.seeds import rng
from pipeline.networks.weights import save_weights
from pipeline.synthetic.animation import clip, photo
from pipeline.synthetic.generator import latent
from pipeline.synthetic.person import person
from pipeline.synthetic.raster import render
from pipeline.synthetic.scene import Figure, figure

ENCODER_SEED = 6  # many a fresh motion encoder says the same of every face
LOOK = Look()
ROOT = Path(__file__).parents[2]
SIDE = 256  # pixels of photos and videos
FRAMES = 8  # of a drawn video
TICK = Fraction(1, 30_000)


def params(workers: int = 0) -> Params:
    own = scale_params("smoke")
    machine = own.machine.model_copy(update={"workers": workers, "device": "cpu"})
    return own.model_copy(update={"machine": machine})


def save_networks(folder: Path, seed: int = 1, neck: str = "none") -> Weights:
    """Networks that know nothing, but whose density differs from place to place."""
    sizes = params().networks
    # Other tests shall draw the same numbers before and after.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        psi = Psi(sizes)
        # The same draws whatever parts it has; these make heads that are neither fog nor nothing.
        torch.manual_seed(157 + seed)
        # Fresh layers of these kinds are constant: all heads would be one fog that nothing moves.
        torch.nn.init.normal_(psi.decoder.out_sigma.weight, std=20.0)
        torch.nn.init.constant_(psi.decoder.out_sigma.bias, 2.0)
        for block in psi.encoder_canonical.trans_blocks_motion:
            torch.nn.init.normal_(block.attn2.proj.weight)
        torch.manual_seed(ENCODER_SEED)
        encoder = MotionEncoder(sizes.motion)
    weights = weights_in(folder)
    facts = {"network": "psi", "motion": "emot", "neck": neck, "sizes": asdict(sizes)}
    save_weights(weights.psi, psi.state_dict(), facts)
    motion_facts = {"sizes": asdict(sizes.motion)}
    save_weights(weights.motion, encoder.state_dict(), motion_facts)
    return weights


def weights_in(folder: Path) -> Weights:
    """The networks that `save_networks` wrote there."""
    return Weights(folder / "psi.safetensors", folder / "motion.safetensors")


def film_of(
    folder: Path,
    out: str = "a.mp4",
    look: Look = LOOK,
    photo: str = "photo.png",
    driver: str = "first.mp4",
) -> Film:
    """The one film of a photo and a driver, which are in `folder` unless they are here."""
    paths = []
    for name in (photo, driver):
        here = Path(name)
        paths.append(here if here.exists() else folder / name)
    [film] = animate(
        params(),
        weights_in(folder),
        paths[:1],
        paths[1:],
        Path(out),
        look,
    )
    return film


def draw_person(who: str) -> Figure:
    """The geometry of a person who is called `who`."""
    numbers = latent(3, who)
    return figure(person(numbers))


def draw_photo(path: Path, who: str = "a") -> Path:
    body = draw_person(who)
    shot = photo(rng(4, who))
    drawn = render(
        body,
        shot.moment,
        shot.camera,
        SIDE,
    )
    Image.fromarray(drawn.rgb).save(path)
    return path


def draw_frames(count: int, who: str = "b") -> list[np.ndarray]:
    body = draw_person(who)
    frames = []
    for shot in clip(rng(4, who), count, 10):
        drawn = render(
            body,
            shot.moment,
            shot.camera,
            SIDE,
        )
        frames.append(drawn.rgb)
    return frames


def write_clip(path: Path, frames: list[np.ndarray], seconds: list[float], sound: str = "") -> Path:
    """A video whose frames appear at `seconds`, with a tone by the codec `sound` that is as long."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt, stream.thread_count = "yuv420p", 1
        stream.codec_context.time_base = TICK
        # Without a codec the video is silent.
        tone = container.add_stream(sound, rate=44_100) if sound else None
        # The last frame is shown as long as the one before it.
        last = 2 * seconds[-1] - seconds[-2]
        ends = [*seconds[1:], last]
        for picture, second, end in zip(frames, seconds, ends, strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = round(second / TICK), TICK
            frame.duration = round(end / TICK) - frame.pts
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if tone:
            for packet in _tone(tone, seconds[-1]):
                container.mux(packet)
    return path


def _tone(stream: av.AudioStream, seconds: float) -> list[av.Packet]:
    count = int(44_100 * seconds)
    phase = np.arange(count) / 20
    wave = 8_000 * np.sin(phase)
    levels = wave.astype(np.int16)[None]
    frame = av.AudioFrame.from_ndarray(levels, format="s16", layout="mono")
    frame.rate = 44_100
    # An encoder takes its own format, so many values at a time; None is the rest.
    resampler = av.AudioResampler(
        stream.format.name,
        stream.layout.name,
        44_100,
        stream.frame_size or 0,
    )
    packets = []
    for sound in (frame, None):
        for part in resampler.resample(sound):
            packets += stream.encode(part)
    return packets + stream.encode()


def start(folder: Path, *arguments: str | Path) -> subprocess.Popen:
    """The command psi4d in `folder`, which has dvc.yaml and params.yaml."""
    code = "from psi4d_command import main; main()"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=pipe, stderr=pipe, text=True)


def psi4d(folder: Path, *arguments: str | Path) -> subprocess.CompletedProcess:
    """The same, to its end."""
    run = start(folder, *arguments)
    out, error = run.communicate(timeout=300)
    return subprocess.CompletedProcess(run.args, run.returncode, out, error)
