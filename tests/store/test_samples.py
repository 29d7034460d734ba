"""The kinds of samples: what is encoded is what is read, and a writer cannot leave out or mistake a field."""

import numpy as np
import pytest
import torch

from pipeline.store.samples import Aligned, Form, Heads, Views, image_tensor
from pipeline.store.shards import ShardReader, write_shard

VIEWS, SIDE, RAYS, POINTS, CHANNELS = 2, 8, 4, 5, 3
SIZES = {
    "image": SIDE,
    "rays": RAYS,
    "depth": RAYS,
    "views": VIEWS,
    "rows": VIEWS * RAYS,
    "points": POINTS,
    "channels": CHANNELS,
}


def values() -> dict[str, np.ndarray]:
    """Random values for the fields of a synthetic head."""
    draw = np.random.default_rng(0)
    found = {}
    for name, field in Heads.fields().items():
        _, form = next(field.forms(SIZES))
        shape = (VIEWS, *form.shape) if field.count else form.shape
        numbers = draw.integers(0, 256, shape) if form.type == "uint8" else draw.normal(size=shape)
        found[name] = numbers.astype(form.type)
    return found


def test_what_is_encoded_is_read(tmp_path):
    known = values()
    write_shard(tmp_path / "heads-000000.tar", [("head-0", Heads.encode(**known))])
    sample = ShardReader(tmp_path, Heads.stage)["head-0"]
    for name, field in Heads.fields().items():
        for number in range(VIEWS) if field.count else [None]:
            wanted = known[name] if number is None else known[name][number]
            assert np.array_equal(field.array(sample, number), wanted)
    # Trainers read tensors: range, order of the axes and the type of depths, which are stored as halves.
    assert torch.equal(Heads.view.tensor(sample, 1), image_tensor(sample["view1.png"]))
    assert Heads.view.tensor(sample, 1).shape == (3, SIDE, SIDE)
    assert Heads.opacity.tensor(sample).shape == (1, VIEWS * RAYS, RAYS)
    depth = Heads.depth.tensor(sample)
    assert depth.dtype == torch.float32 and np.array_equal(depth.numpy(), known["depth"])
    assert "view2.png" not in sample and len(sample) == len(list(sample)) == 12


def test_a_field_is_neither_forgotten_nor_mistaken():
    # Each of these would make a cache that a later stage refuses only after hours of rendering.
    known = values()
    for name in ("depth", "view"):
        with pytest.raises(ValueError, match=f"{name} is missing or unknown"):
            Heads.encode(**{key: value for key, value in known.items() if key != name})
    with pytest.raises(ValueError, match="mask is missing or unknown"):
        Heads.encode(**known, mask=known["opacity"])
    with pytest.raises(ValueError, match=r"depth\.npy holds float16 .* not float32"):
        Heads.encode(**known | {"depth": known["depth"].astype(np.float32)})
    with pytest.raises(ValueError, match=r"label\.npy"):
        Heads.encode(**known | {"label": known["label"][None]})
    # Bytes that are encoded already are passed on, as encoding a frame anew would cost time and digits.
    as_ingested = Aligned.mask.encode(known["opacity"])
    assert Aligned.encode(image=known["view"][0], mask=as_ingested)["mask.png"] == as_ingested


def test_sizes_that_are_seen_say_what_else_there_must_be():
    # Three motions are those of a real frame and two views.
    frames = {"motion.npy": Form("float32", (3, 7)), "image.webp": Form("uint8", (16, 16, 3))}
    # The opacity of a view may be as small as it was rendered, and a picture has its codec's name.
    frames["alpha0.png"] = Form("uint8", (8, 8))
    wanted = Views.expected(frames)
    assert wanted["alpha1.png"] == Form("uint8", (8, 8)) and "view2.png" not in wanted
    assert wanted["image.webp"] == Form("uint8", (16, 16, 3)) and "image.png" not in wanted
    assert wanted["landmarks.npy"] == Form("float32", (3, 70, 2))
    assert wanted["frame.json"] == Form("dict", ())
    with pytest.raises(KeyError):
        Views.expected({"motion.npy": frames["motion.npy"]})
