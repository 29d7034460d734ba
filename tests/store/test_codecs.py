"""Pictures of shards in other codecs than PNG."""

import numpy as np
import pytest

from pipeline.config.disk import frame_fields, share
from pipeline.config.scales import scale_params
from pipeline.core.errors import UserError
from pipeline.store.codecs import SUFFIXES, codec, decode_picture
from pipeline.store.samples import Aligned, image_tensor
from pipeline.store.shards import ShardReader, write_shard


def smooth(side: int = 64) -> np.ndarray:
    """A picture as smooth as a face, uint8 (side, side, 3)."""
    y, x = np.mgrid[:side, :side] / side
    waves = [np.sin(3 * x + 2 * y), np.cos(4 * y), np.sin(5 * x * y)]
    return np.uint8(127.5 * (np.stack(waves, axis=-1) + 1))


@pytest.mark.parametrize("text", ["png", "webp"])
def test_what_is_lossless_loses_nothing(text):
    picture = np.random.default_rng(0).integers(0, 256, (17, 23, 3), np.uint8)
    assert np.array_equal(decode_picture(codec(text).encode(picture)), picture)


@pytest.mark.parametrize("name", ["webp", "jpeg", "avif"])
def test_a_quality_costs_bytes_and_buys_decibels(name):
    noisy = np.random.default_rng(0).integers(-12, 13, (64, 64, 1)) + smooth()
    picture = np.uint8(noisy.clip(0, 255))

    def cost(quality: int) -> tuple[int, float]:
        data = codec(f"{name}-{quality}").encode(picture)
        return len(data), np.square(decode_picture(data).astype(float) - picture).mean()

    (few, far), (many, near) = cost(40), cost(95)
    assert few < many
    assert near < far < 400


def test_a_grey_picture_stays_grey():
    grey = smooth()[:, :, 0]
    for text in ("png", "jpeg-100", "avif-100"):
        again = decode_picture(codec(text).encode(grey))
        assert again.shape == grey.shape
        assert np.abs(again.astype(int) - grey).max() <= 3


def test_a_reader_needs_not_know_the_codec(tmp_path):
    picture, mask = smooth(), smooth()[:, :, 0]
    for number, text in enumerate(("png", "webp", "webp-90", "jpeg-90", "avif-90")):
        folder = tmp_path / text
        fields = Aligned.encode({"image": text}, image=picture, mask=mask)
        # Bytes that are PNG already become the other codec as well.
        again = Aligned.encode({"image": text}, image=Aligned.image.encode(picture), mask=mask)
        assert again == fields
        name = f"image{SUFFIXES[text.partition('-')[0]]}"
        assert fields.keys() == {name, "mask.png"}
        write_shard(folder / "a.tar", [("a", fields)])
        reader = ShardReader(folder)
        whole, lazy = reader.read("a"), reader["a"]
        for sample in (whole, lazy):
            assert np.array_equal(Aligned.image.array(sample), decode_picture(fields[name]))
            assert Aligned.image.tensor(sample).equal(image_tensor(fields[name]))
        assert reader.read("a", "image.png") == fields[name]
        assert number == 0 or text != "png"
    with pytest.raises(UserError, match=r"has no field depth\.png, only image\.avif, mask\.png"):
        reader.read("a", "depth.png")


def test_bytes_on_disk_are_counted_by_codec():
    assert [share("png"), share("webp")] == [1.0, 0.6]
    assert share("webp-90") < share("webp-93") < share("webp-95") < share("webp")
    paper = scale_params("paper")
    fields = frame_fields(paper)
    plain = {"image": "png", "mask": "png", "view": "png", "alpha": "png", "uv": "png"}
    codecs = paper.render_views.pictures.model_copy(update=plain)
    section = paper.render_views.model_copy(update={"pictures": codecs, "alpha_size": "image"})
    before = frame_fields(paper.model_copy(update={"render_views": section}))
    # A sixteenth of the pixels: 128 rays in place of 512 pixels a side.
    assert fields["alpha"] < before["alpha"] / 12
    assert fields["view"] < 0.2 * before["view"]
    assert fields["image"] < 0.7 * before["image"]
    assert sum(fields.values()) < 0.4 * sum(before.values())
