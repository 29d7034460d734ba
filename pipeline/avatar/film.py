"""The sound of the driver beside the pictures of the result."""

import io
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
from av.error import FFmpegError

# What players expect in an MP4. Sound of another kind is encoded anew.
COPIED = frozenset({"aac", "mp3", "ac3", "eac3", "opus", "flac", "alac"})
SOUND_RATE, SAMPLE_RATE = 128_000, 48_000  # bits and samples a second


def with_sound(film: bytes, file: Path) -> bytes | None:
    """`film`, an MP4 that begins at 0 seconds, with the sound of the video `file`; None when that has none.

    Pictures are copied as they are, and so is sound where MP4 allows it. A damaged sound is taken as far as
    it goes. Equal inputs make equal bytes.
    """
    with av.open(str(file), metadata_errors="ignore") as driver, av.open(io.BytesIO(film)) as silent:
        if not driver.streams.audio:
            return None
        sink = io.BytesIO()
        with av.open(sink, "w", format="mp4") as result:
            pictures, sound = silent.streams.video[0], driver.streams.audio[0]
            track = result.add_stream_from_template(pictures)
            take = _copied if _may_copy(sound) else _encoded
            # An hour of sound is 60 MB. The tracks must be known before the first packet is written.
            packets = list(take(result, driver, sound))
            for packet in _by_time(silent, pictures, track, packets):
                result.mux(packet)
    return sink.getvalue() if packets else None


def _may_copy(sound: av.AudioStream) -> bool:
    # FFmpeg calls the decoder of MP3 that it takes mp3float.
    name = sound.codec_context.name
    return name.removesuffix("float") in COPIED


def _start(driver: av.container.InputContainer) -> Fraction:
    """Seconds at which the pictures of the driver begin, as those of the result do at 0."""
    stream = driver.streams.video[0]
    return (stream.start_time or 0) * (stream.time_base or Fraction(0))


def _copied(
    result: av.container.OutputContainer,
    driver: av.container.InputContainer,
    sound: av.AudioStream,
) -> Iterator[av.Packet]:
    track = result.add_stream_from_template(sound)
    # Sound may begin before the pictures or after them, and keeps its distance.
    shift = round(_start(driver) / sound.time_base)
    for packet in _packets(driver, sound):
        if packet.dts is None or packet.pts is None:
            continue
        packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
        packet.stream = track
        yield packet


def _encoded(
    result: av.container.OutputContainer,
    driver: av.container.InputContainer,
    sound: av.AudioStream,
) -> Iterator[av.Packet]:
    # A cinema's six channels are mixed down, as few players have more than two.
    layout = "mono" if sound.codec_context.channels == 1 else "stereo"
    track = result.add_stream("aac", rate=SAMPLE_RATE, layout=layout)
    track.bit_rate = SOUND_RATE
    resampler = av.AudioResampler("fltp", layout, SAMPLE_RATE, frame_size=1024)
    shift = round(_start(driver) / sound.time_base)
    for packet in _packets(driver, sound):
        for frame in _decoded(packet):
            frame.pts = None if frame.pts is None else frame.pts - shift
            for part in resampler.resample(frame):
                yield from track.encode(part)
    for part in resampler.resample(None):
        yield from track.encode(part)
    yield from track.encode()


def _packets(driver: av.container.InputContainer, sound: av.AudioStream) -> Iterator[av.Packet]:
    """What the file holds of the sound; damage ends it."""
    packets = driver.demux(sound)
    while True:
        try:
            packet = next(packets, None)
        except FFmpegError:
            return
        if packet is None:
            return
        if packet.size:
            yield packet


def _decoded(packet: av.Packet) -> list[av.AudioFrame]:
    """A damaged packet is silence, not the end of the film."""
    try:
        return packet.decode()
    except FFmpegError:
        return []


def _by_time(
    silent: av.container.InputContainer,
    pictures: av.VideoStream,
    track: av.VideoStream,
    sounds: list[av.Packet],
) -> Iterator[av.Packet]:
    """The packets of both in the order of time, so that a player need not jump about in the file."""
    waiting = iter(sounds)
    sound = next(waiting, None)
    for packet in silent.demux(pictures):
        if packet.dts is None:
            continue
        now = packet.dts * packet.time_base
        while sound is not None and sound.dts * sound.time_base <= now:
            yield sound
            sound = next(waiting, None)
        packet.stream = track
        yield packet
    if sound is not None:
        yield sound
    yield from waiting
