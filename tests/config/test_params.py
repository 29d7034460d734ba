"""params.yaml: the scales, what DVC makes of a file, and what a wrong file is answered."""

import re

import pytest
from dvc.utils.hydra import apply_overrides

from model.sizes import Sizes
from pipeline.config.params import check_params, load_params
from pipeline.config.scales import SCALES, scale_data, scale_params, scale_text
from pipeline.core.errors import UserError


def refusal(change) -> str:
    data = scale_data("demo")
    change(data)
    with pytest.raises(UserError) as error:
        check_params(data, "params.yaml")
    return str(error.value)


def put(path: str, value):
    def change(data: dict) -> None:
        *sections, key = path.split(".")
        for section in sections:
            data = data[section]
        data[key] = value

    return change


@pytest.mark.parametrize("name", SCALES)
def test_an_experiment_changes_one_line_of_the_file(name, tmp_path):
    """`dvc exp run -S` writes the file anew, and leaves it so when the experiment fails."""
    path = tmp_path / "params.yaml"
    path.write_text(scale_text(name))
    apply_overrides(path, ["train.substitute_q=0.25"])
    # Lists would become blocks if they were none, and the file would differ in dozens of lines.
    pairs = zip(scale_text(name).splitlines(), path.read_text().splitlines(), strict=True)
    [(_, changed)] = [(old, new) for old, new in pairs if old != new]
    assert changed.startswith("  substitute_q: 0.25 #")
    assert load_params(path).train.substitute_q == 0.25


def flat(data: dict, path: str = "") -> dict[str, object]:
    values = {}
    for key, value in data.items():
        values |= flat(value, f"{path}{key}.") if isinstance(value, dict) else {path + key: value}
    return values


def test_the_scales_have_the_same_keys():
    """And how they differ, for a person who runs this with -s."""
    scales = {name: flat(scale_data(name)) for name in SCALES}
    assert all(scales[name].keys() == scales["demo"].keys() for name in SCALES)
    print("", "key".ljust(50), *(name.rjust(16) for name in SCALES))
    for key in scales["demo"]:
        values = [str(scales[name][key]) for name in SCALES]
        if len(set(values)) > 1:
            print("", key.ljust(50), *(value.rjust(16) for value in values))


@pytest.mark.parametrize("name", SCALES)
def test_every_scale_is_valid_and_survives_its_file(name, tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text(scale_text(name))
    params = load_params(path)
    assert params == scale_params(name)
    assert params.scale == name


def test_the_paper_scale_has_the_published_numbers():
    # They are written out here once more: an edit of the preset by mistake must not pass.
    params = scale_params("paper")
    assert params.networks == Sizes()
    assert (params.train_psi3d.images, params.train.images, params.train.batch) == (10_000_000, 6_000_000, 32)
    assert (params.train_psi3d.identity_from, params.train_psi3d.adversarial_from) == (400_000, 1_000_000)
    assert (
        params.train.learning_rate,
        params.train.motion_learning_rate_scale,
        params.train.ema_half_life,
    ) == (1e-4, 2.5, 10_000)
    assert (params.train.substitute_p, params.train.substitute_q) == (0.1, 0.8)
    assert params.train.blink_compensation
    # Facts 4.7 and 4.8: 10,000 clips, 50 of the first 200 frames of each; the test clips have all of theirs.
    assert (params.ingest.train_clips, params.ingest.frames, params.render_views.frames) == (10_000, 200, 50)
    evaluation = params.evaluate
    assert (evaluation.split, evaluation.clips, evaluation.self_frames) == ("test", 100, 200)
    # Every two of 100 people meet, both ways and twice: 198 frames of each of 100 drivers.
    assert (evaluation.cross, evaluation.cross_pairs) == ("all", 2 * 100 * 99)
    assert (evaluation.fid, evaluation.frontal_drivers) == ("pairs", 50)
    # The estimator has no published counterpart, so that it is trained here: once on every face.
    estimator = params.pretrain.perception
    faces = params.ingest.identities + params.ingest.train_clips * params.ingest.frames
    assert estimator.steps * estimator.batch >= faces


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("train.substitut_q", 0.5, "unknown key train.substitut_q; did you mean train.substitute_q?"),
        ("networks.psi.dimm", 64, "unknown key networks.psi.dimm; did you mean networks.psi.dim?"),
        ("ingset", {}, "unknown key ingset; did you mean ingest?"),
        (
            "train.substitute_q",
            1.5,
            "train.substitute_q is 1.5, but must be a number, at least 0 and at most 1",
        ),
        (
            "pretrain.official",
            "~/weights",
            'pretrain.official is "~/weights", but DVC needs the whole path: /',
        ),
        ("train.init", "gan", 'train.init is "gan", but must be one of psi3d, random, official'),
        ("render_views.pictures.view", "webp-101", 'view is "webp-101", but must be png, webp-90, jpeg-90'),
        ("render_views.pictures.mask", "webp", 'mask is "webp", but must be png'),
        ("render_views.views", 1, "render_views.views is 1, but must be a whole number, at least 2"),
        (
            "train.source",
            "official",
            'train.source is "official", but must be another one unless pretrain.source',
        ),
        ("train.images", True, "train.images is true, but must be a whole number, at least 1"),
        ("train.images", 3.5, "train.images is 3.5, but must be a whole number"),
        ("train.microbatch", 3, "train.microbatch is 3, but must be train.batch"),
        (
            "pretrain.motion.microbatch",
            64,
            "pretrain.motion.microbatch is 64, but must be pretrain.motion.batch",
        ),
        ("train.learning_rate", float("nan"), "train.learning_rate is NaN"),
        ("train.weights", None, "train.weights is null, but must be a section with the keys l1"),
        ("ingest.clip_size", 255, "ingest.clip_size is 255"),
        (
            "networks.psi.encoder_blocks",
            3,
            "networks.psi.encoder_blocks is 3, but must be a list of whole numbers",
        ),
        ("networks.w_dim", 0, "networks.w_dim is 0, but must be above 0"),
        ("networks.image", 128, "image is 128"),
        ("ingest.test_clips", 1, "pairs need ingest.test_clips of at least 2"),
        (
            "networks.planes",
            "sideways",
            'networks.planes is "sideways", but must be one of published, upright',
        ),
        ("train.adam_eps", 0, "train.adam_eps is 0, but must be a number, above 0"),
        ("ingest.frames", 4, "ingest.frames is 4, but must be at least ingest.min_frames 8"),
        ("train.clips", 1000, "must be at most ingest.train_clips"),
        ("train.images", 1, "must be at least train.batch"),
        ("pretrain.source", "official", "render_genhead.z"),
        ("render_genhead.z", "normal", "render_genhead.portrait_share"),
        (
            "render_genhead.geometry_share",
            1e-4,
            "geometry_share is 0.0001, but must be at least 1 of 1,200 heads",
        ),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(path, value, words):
    # Slips of the keyboard, of a type, of a range, and values that only another key makes wrong.
    message = refusal(put(path, value))
    assert message.startswith("params.yaml: ")
    assert words in message


def test_a_missing_key_is_named():
    assert "the key train.batch is missing (a whole number, at least 1)" in refusal(
        lambda data: data["train"].pop("batch")
    )


def test_all_problems_come_at_once():
    # With one at a time a person would start as many runs as there are problems.
    message = refusal(lambda data: data["train"].update(substitute_p=-1, batch="many"))
    assert "train.substitute_p is -1" in message
    assert 'train.batch is "many"' in message


def test_params_are_frozen():
    # Params are part of fingerprints: a change after the start would belong to no file.
    with pytest.raises(ValueError, match="frozen"):
        scale_params("demo").train.batch = 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("train: [1", "is not valid YAML"),
        ("train:\n  batch: 1\n  batch: 2\n", "is not valid YAML.*batch"),
        ("just words", "must hold sections"),
        ("", "must hold sections"),
        (b"\xff\xfe\x00", "cannot be read"),
    ],
)
def test_a_file_that_is_no_params_file(text, words, tmp_path):
    # An editor that crashed, a key that was pasted twice, a file of another program, UTF-16 of Windows.
    path = tmp_path / "params.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError) as error:
        load_params(path)
    assert re.search(words, str(error.value), re.DOTALL)


def test_no_file_at_all(tmp_path):
    with pytest.raises(UserError, match="psi4d scale demo"):
        load_params(tmp_path / "params.yaml")


def test_short_exponents_are_numbers(tmp_path):
    """PyYAML would read 1e-4 as text; dvc and we read YAML 1.2."""
    path = tmp_path / "params.yaml"
    rate = scale_params("demo").train.learning_rate
    text, count = re.subn(
        f"learning_rate: {rate}\\b", f"learning_rate: {rate * 1e4:g}e-4", scale_text("demo")
    )
    assert count
    path.write_text(text)
    assert load_params(path) == scale_params("demo")
