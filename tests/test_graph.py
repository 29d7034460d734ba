"""dvc.yaml against the code, as DVC reads it at a small scale and at the published one.

A stage depends on the marks of its code, on the data that it reads and on its own params, and on nothing else.
"""

import ast
import importlib
import shutil
from pathlib import Path

import pytest
from dvc.dependency import ParamsDependency
from dvc.repo import Repo
from dvc.stage import PipelineStage

from pipeline.code_mark import MARKS, SOURCE, stage_marks, stage_names
from pipeline.scales import scale_data, scale_text

STAGES = ["code", "ingest", "fit_flame", "pretrain", "render_genhead", "train_psi3d", "render_views", "train", "evaluate"]
FOLDERS = {"ingest": ["ingest.portraits", "ingest.clips"], "pretrain": ["pretrain.official"]}  # keys of params.yaml


@pytest.fixture(scope="module", params=["demo", "paper"])
def scale(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def graph(scale, tmp_path_factory) -> list[PipelineStage]:
    """The stages in their order, an item of a matrix each."""
    folder = tmp_path_factory.mktemp("graph")
    shutil.copy(SOURCE / "dvc.yaml", folder)
    (folder / "params.yaml").write_text(scale_text(scale))
    with Repo.init(str(folder), no_scm=True) as repo:
        return list(repo.index.stages)


def name_of(stage: PipelineStage) -> str:
    return stage.name.partition("@")[0]


def reads(stage: PipelineStage) -> list[str]:
    return [dependency.def_path for dependency in stage.deps if not isinstance(dependency, ParamsDependency)]


def test_the_stages_are_those_of_the_design(graph):
    assert list(dict.fromkeys(map(name_of, graph))) == STAGES
    assert sorted(stage_names()) == sorted(STAGES[1:])


def test_a_stage_depends_on_its_code_and_on_what_it_reads(graph, scale):
    data = scale_data(scale)
    for stage in graph[1:]:
        name, _, item = stage.name.partition("@")
        marks = [f"pretrain.{item}", f"pretrain.{data['pretrain']['source']}"] if name == "pretrain" else [name]
        assert set(marks) <= set(stage_marks(name))
        folders = [data[section][key] for section, key in (key.split(".") for key in FOLDERS.get(name, []))]
        declared = importlib.import_module(f"stages.{name}").READS
        assert reads(stage) == [*(f"{MARKS}/{mark}.txt" for mark in marks), *map(str, declared), *folders]


def test_a_stage_depends_on_params_that_exist_and_never_on_the_machine(graph, scale):
    for stage in graph[1:]:
        [params] = [dependency for dependency in stage.deps if isinstance(dependency, ParamsDependency)]
        assert len(set(params.params)) == len(params.params)
        for path in params.params:
            assert not path.startswith(("machine", "scale"))
            value = scale_data(scale)
            for key in path.split("."):
                assert key in value, f"{stage.name}: {path} is no key of params.yaml"
                value = value[key]


def test_every_read_is_written_by_an_earlier_stage(graph):
    written: list[Path] = []
    for stage in graph:
        for path in map(Path, reads(stage)):
            made = any(path.is_relative_to(out) or out.is_relative_to(path) for out in written)
            folder = path in (Path("data/portraits"), Path("data/clips"), Path("data/official"))
            assert made != folder, f"{stage.name}: no stage before it makes {path}"
        written += [Path(out.def_path) for out in stage.outs]


def test_a_fingerprint_has_all_paths_that_its_function_reads():
    """Or a stopped run could go on with what was made from other files."""
    checked = []
    for file in sorted((SOURCE / "pipeline").rglob("*.py")):
        for function in ast.parse(file.read_text()).body:
            for call in calls_of("fingerprint", function):
                paths = {each.arg for each in function.args.args if ast.unparse(each.annotation or each) == "Path"}
                writes = {"out", "worst"} | ({"truth"} if function.name == "generate" else set())
                reads = {name for name in paths - writes if not name.startswith("_")}
                given = {each.id for each in ast.walk(call) if isinstance(each, ast.Name)}
                assert reads <= given, f"{file.name}: the fingerprint in {function.name} lacks {reads - given}"
                checked.append(function.name)
    assert len(checked) > 8


def calls_of(name: str, statement: ast.stmt) -> list[ast.Call]:
    """The calls of a function `name` in a function definition."""
    if not isinstance(statement, ast.FunctionDef):
        return []
    calls = [node for node in ast.walk(statement) if isinstance(node, ast.Call)]
    return [call for call in calls if ast.unparse(call.func) == name]
