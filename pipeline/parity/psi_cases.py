"""The parity cases of Psi and Psi_3d, which share its weights and much of the way to the planes."""

from functools import lru_cache

from torch import Tensor

from model.head.deform import NeckField
from model.psi.network import EQUALISED, Psi
from model.volume.planes import Planes
from model.volume.renderer import Deform
from pipeline.parity.fixture import PAPER, Fixture, Found, ParityCase, recorded, statistics
from pipeline.parity.numbers import NumberRule, camera

# Stored inputs of psi_v2_posed and their shapes. No rule makes them, so that a thinned fixture keeps them
# whole.
NECK_GRIDS = {
    "grid24_offset": (3, 24, 24, 24),
    "grid24_dist2": (1, 24, 24, 24),
    "grid8_offset": (3, 8, 8, 8),
}


@lru_cache(maxsize=1)
def made_psi(rule: NumberRule) -> Psi:
    """Psi with weights by the rule, kept for the next case: they take some seconds to make."""
    return rule.fill(Psi(PAPER), EQUALISED)


@lru_cache(maxsize=1)
def _psi_planes(rule: NumberRule, motion_scale: float) -> tuple[Planes, Tensor, dict[str, Found]]:
    """Planes, background feature and what the fixtures hold of the way there."""
    psi = made_psi(rule)
    source = rule.image("img_app", 512)
    canonical = psi.encoder_canonical
    layers = {
        "encoder_global": psi.encoder_global,
        "encoder_detail": psi.encoder_detail,
        "background_logits": psi.background,
    }
    own = rule.tensor("motion_app", (1, PAPER.motion.dims))
    driving = rule.tensor("motion", (1, PAPER.motion.dims))
    with recorded(**layers, canonical_lr=canonical.shuffle, canonical_sr=canonical) as seen:
        planes = psi.planes(source, own, driving, motion_scale)
        background = psi.background_feature(source)
    # The fixtures hold every second or eighth pixel of a feature map, to be small.
    steps = {
        "encoder_global": 2,
        "encoder_detail": 8,
        "canonical_lr": 2,
        "canonical_sr": 8,
        "background_logits": 8,
        "planes": 8,
    }
    layers_and_planes = seen | {"planes": planes.triplanes_B3CRR}
    found: dict[str, Found] = {}
    for name, step in steps.items():
        value = layers_and_planes[name][0]
        found[name] = value[..., ::step, ::step].clone()
        found[f"{name}_stats"] = statistics(value)
    return planes, background, found


def forget_psi() -> None:
    """Frees Psi, nearly a gigabyte, and its planes."""
    made_psi.cache_clear()
    _psi_planes.cache_clear()


def _psi_picture(
    rule: NumberRule,
    motion_scale: float,
    deform: Deform | None = None,
) -> dict[str, Found]:
    planes, background, _ = _psi_planes(rule, motion_scale)
    out = made_psi(rule).render(planes, background, camera()[None], deform)
    transmittance = 1 - out.opacity[0]
    # The background counts twice, as pictures go from -1 to 1.
    feature = out.feature[0]
    return {
        "camera": camera(),
        "feature": feature,
        "feature_wobg": feature - 2 * (transmittance * background[0]),
        "transmittance": transmittance,
        "depth": out.depth[0],
        "image": out.raw[0],
        "image_sr": out.image[0],
        "image_sr_exact": out.image[0, :, ::8, ::8],
    }


def psi_v2(rule: NumberRule, fixture: Fixture) -> dict[str, Found]:
    """Psi from the portrait to the picture."""
    _, _, layers = _psi_planes(rule, 1.0)
    return layers | _psi_picture(rule, 1.0)


def psi_3d(rule: NumberRule, fixture: Fixture) -> dict[str, Found]:
    """Psi_3d: motion scale 0."""
    _, _, layers = _psi_planes(rule, 0.0)
    # Encoders and background are the same as in psi_v2, and stored there.
    found = _psi_picture(rule, 0.0)
    for name, value in layers.items():
        if not name.startswith(("encoder", "background")):
            found[name] = value
    return found


def psi_v2_posed(rule: NumberRule, fixture: Fixture) -> dict[str, Found]:
    """Psi with a posed neck, from stored grids of the neck field."""
    grids = [fixture.given(name, shape) for name, shape in NECK_GRIDS.items()]
    neck = NeckField(*grids, PAPER.box)
    picture = _psi_picture(rule, 1.0, neck)
    del picture["feature"], picture["image_sr_exact"]
    points = rule.tensor("deform_points", (1, 4096, 3), 0.35)
    return picture | {"points_out": neck(points)[0]}


PSI_CASES: dict[str, ParityCase] = {
    "psi_v2": psi_v2,
    "psi_3d": psi_3d,
    "psi_v2_posed": psi_v2_posed,
}
