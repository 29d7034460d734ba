"""dvc.yaml against the code: a stage depends on every module that it imports, directly or not, and on its own params only.

`make graph` runs this file as a script: it writes the code files of each stage into dvc.yaml.
"""

from pathlib import Path

import pytest
from ruamel.yaml import YAML

from pipeline.fingerprint import closure, imports
from pipeline.scales import scale_data

ROOT = Path(__file__).parents[1]
STAGES = ("ingest", "fit_flame", "pretrain", "render_genhead", "train_psi3d", "render_views", "train", "evaluate")


def graph() -> dict:
    return YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())


def rewrite() -> None:
    """Write the code files of every stage into dvc.yaml, before its data."""
    yaml = YAML()
    yaml.width = 140
    yaml.indent(mapping=2, sequence=4, offset=2)
    path = ROOT / "dvc.yaml"
    content = yaml.load(path.read_text())
    for name, stage in content["stages"].items():
        data = [dependency for dependency in stage["deps"] if not dependency.endswith(".py")]
        stage["deps"] = [*closure(f"stages/{name}.py"), *data]
    with open(path, "w") as file:
        yaml.dump(content, file)


def test_the_stages_are_those_of_the_design():
    assert tuple(graph()["stages"]) == STAGES


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_the_code_it_imports(stage):
    listed = [dependency for dependency in graph()["stages"][stage]["deps"] if dependency.endswith(".py")]
    assert listed == closure(f"stages/{stage}.py"), "run `make graph`"


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_params_that_exist_and_never_on_the_machine(stage):
    content = graph()["stages"][stage]
    items = [str(item) for values in content.get("matrix", {"": [""]}).values() for item in values]
    for path in content["params"]:
        assert not path.startswith(("machine", "scale"))
        for item in items:
            value = scale_data("demo")
            for key in (path.split("${")[0] + item if "${" in path else path).split("."):
                assert key in value, f"{stage}: {path} is no key of params.yaml"
                value = value[key]


def test_layers_only_import_downwards():
    for file in sorted((ROOT / "model").glob("*.py")):
        assert not [name for name in imports(f"model/{file.name}") if not name.startswith("model/")], file
    for file in sorted((ROOT / "pipeline").glob("*.py")):
        assert not [name for name in imports(f"pipeline/{file.name}") if name.startswith("stages/")], file


def test_every_read_is_written_by_an_earlier_stage():
    written: list[str] = []
    for name, stage in graph()["stages"].items():
        items = [item for values in stage.get("matrix", {"": [""]}).values() for item in values]
        for dependency in stage["deps"]:
            if dependency.startswith("data/"):
                assert any(dependency == out or dependency.startswith(f"{out}/") for out in written), f"{name}: nobody writes {dependency}"
        for out in stage["outs"]:
            path = next(iter(out)) if isinstance(out, dict) else out
            written += [f"{path.split('${')[0]}{item}{path.split('}')[-1]}" if "${" in path else path for item in items]


if __name__ == "__main__":
    rewrite()
