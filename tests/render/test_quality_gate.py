"""The three measures of quality and the gate, on pictures whose quality is known."""

import math

import pyarrow as pa
import pytest
import torch

from model.judges.identity import IdentityNet
from model.judges.regressor import Regressor
from model.judges.trunk import Trunk
from model.sizes import IdentitySizes
from pipeline.config.scales import SCALES, scale_params
from pipeline.networks.judges import Judges
from pipeline.render.quality_gate import failed_measures, gate_summary, measure

POINTS = torch.tensor(
    [
        [0.38, 0.46],
        [0.6, 0.46],
        [0.48, 0.59],
        [0.4, 0.69],
        [0.57, 0.69],
    ]
)


def test_known_pictures():
    """Of four reconstructions one is perfect, one is 0.2 off, one covers half, and one is no number."""
    torch.manual_seed(0)
    identity = IdentityNet(IdentitySizes((1, 1, 1, 1), 8, 16))
    judges = Judges(identity, Trunk(), Regressor())
    picture = torch.rand(1, 3, 32, 32) * 1.6 - 0.8
    real = picture.repeat(4, 1, 1, 1)
    mask = torch.zeros(4, 1, 32, 32)
    mask[:, :, 8:24, 8:24] = 1.0
    image = real.clone()
    opacity = mask.clone()
    # Outside of the mask the second one is far off, which must not count.
    image[1] += torch.where(mask[1] > 0, 0.2, 0.9)
    opacity[2, :, :, 16:] = 0.0
    image[3] = math.nan
    opacity[3] = math.nan
    with torch.no_grad():
        points = POINTS.expand(4, 5, 2)
        perfect, off, half, broken = measure(judges, image, opacity, real, mask, points)
    same_face = pytest.approx(1.0, abs=1e-3)
    assert perfect == {"psnr": 60.0, "coverage": 1.0, "identity": same_face}
    assert off["psnr"] == pytest.approx(20.0, abs=1e-3)
    assert off["identity"] < 1.0
    assert half == perfect | {"coverage": 0.5}
    assert broken == {"psnr": 0.0, "coverage": 0.0, "identity": -1.0}


def test_the_gate():
    gate = scale_params("demo").render_views.model_copy(
        update={"min_psnr": 10.0, "min_coverage": 0.5, "min_identity": 0.1}
    )
    good = {"psnr": 10.0, "coverage": 0.5, "identity": 0.1}
    assert failed_measures(gate, good) == ""
    assert failed_measures(gate, good | {"psnr": 9.99, "identity": -0.5}) == "psnr, identity"


@pytest.mark.parametrize("scale", SCALES)
def test_only_the_smoke_scale_keeps_everything(scale):
    """Its networks are hardly trained, so that a gate would leave nothing."""
    section = scale_params(scale).render_views
    # What a picture gets that is no number at all.
    worst = {"psnr": 0.0, "coverage": 0.0, "identity": -1.0}
    assert (failed_measures(section, worst) == "") == (scale == "smoke")


def test_what_the_metrics_count():
    """Test frames are never trained on, so they are not kept out either; a frame may fail by two measures."""
    rows = [
        ("a", "train", ""),
        ("a", "train", "psnr"),
        ("b", "train", ""),
        ("b", "train", ""),
        ("b", "train", "psnr, identity"),
        ("c", "test", "psnr"),
    ]
    index = pa.Table.from_pylist(
        [
            {
                "key": str(i),
                "clip": clip,
                "split": split,
                "kept": not reason,
                "reason": reason,
                "psnr": float(i),
                "coverage": 1.0,
                "identity": 0.5,
            }
            for i, (clip, split, reason) in enumerate(rows)
        ]
    )
    # Clip c is of the test split, so that it is not kept out.
    found = gate_summary(index)
    below = {"psnr": 2, "coverage": 0, "identity": 1}
    assert found["kept_out"] == {"frames": 2, "below": below, "clips": 1}
    assert found["psnr_least"] == 0.0
    assert found["psnr_median"] == 2.5
    assert found["psnr_worst_5_percent"] == 0.25
