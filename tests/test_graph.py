"""dvc.yaml against the code, as DVC reads it at a small scale and at the published one.

A stage depends on the marks of its code, on the data that it reads and on its own params, and on nothing
else.
"""

import ast
import importlib
import re
import shutil
from pathlib import Path

import pytest
from dvc.dependency import ParamsDependency
from dvc.repo import Repo
from dvc.stage import PipelineStage

from pipeline.config.scales import scale_data, scale_text
from pipeline.core import paths
from pipeline.core.paths import MARKS
from pipeline.engine.code_mark import SOURCE, stage_marks, stage_names

STAGES = [
    "code",
    "inputs",
    "ingest",
    "fit_flame",
    "pretrain",
    "render_genhead",
    "train_psi3d",
    "render_views",
    "train",
    "evaluate",
]
# The folder of imported weights, which params.yaml names, and the stages that read it.
OFFICIAL_READERS = ("pretrain", "evaluate")

# Paths of the code that are no outs: what a run notes for the next one.
NO_OUTS = ("BOARD", "CHECKSUMS", "COSTS", "MAPPED")


@pytest.fixture(scope="module", params=["demo", "paper"])
def scale(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def graph(scale, tmp_path_factory) -> list[PipelineStage]:
    """The stages in their order, an item of a matrix each."""
    folder = tmp_path_factory.mktemp("graph")
    # DVC resolves the matrix, the templates and the anchors of dvc.yaml itself.
    shutil.copy(SOURCE / "dvc.yaml", folder)
    (folder / "params.yaml").write_text(scale_text(scale))
    with Repo.init(str(folder), no_scm=True) as repo:
        return list(repo.index.stages)


def name_of(stage: PipelineStage) -> str:
    return stage.name.partition("@")[0]


def reads(stage: PipelineStage) -> list[str]:
    """The files and folders on which a stage depends."""
    return [each.def_path for each in stage.deps if not isinstance(each, ParamsDependency)]


def params_of(stage: PipelineStage) -> list[str]:
    """The keys of params.yaml on which a stage depends."""
    [params] = [each for each in stage.deps if isinstance(each, ParamsDependency)]
    return list(params.params)


def test_the_stages_are_those_of_the_design(graph):
    assert list(dict.fromkeys(map(name_of, graph))) == STAGES
    assert sorted(stage_names()) == sorted(STAGES[2:])


def test_a_stage_depends_on_its_code_and_on_what_it_reads(graph, scale):
    # The first two are run each time: `code` reads all modules, `inputs` the files of the user.
    data = scale_data(scale)
    for stage in graph[2:]:
        name, _, item = stage.name.partition("@")
        marks = [name]
        if name == "pretrain":
            marks = [f"pretrain.{item}", f"pretrain.{data['pretrain']['source']}"]
        assert set(marks) <= set(stage_marks(name))
        code = [f"{MARKS}/{mark}.txt" for mark in marks]
        declared = importlib.import_module(f"stages.{name}").READS
        if isinstance(declared, dict):
            declared = declared[item]
        folders = [data["pretrain"]["official"]] if name in OFFICIAL_READERS else []
        assert reads(stage) == [*code, *map(str, declared), *folders]


def test_a_stage_depends_on_params_that_exist_and_never_on_the_machine(graph, scale):
    # The machine changes no result, so that another number of workers must rerun nothing.
    data = scale_data(scale)
    for stage in graph[2:]:
        keys = params_of(stage)
        assert len(set(keys)) == len(keys)
        for path in keys:
            assert not path.startswith(("machine", "scale"))
            value = data
            for key in path.split("."):
                assert key in value, f"{stage.name}: {path} is no key of params.yaml"
                value = value[key]


def test_every_read_is_written_by_an_earlier_stage(graph):
    # A stage may read a part of what another wrote, or write a part of a folder that is read as a whole.
    written: list[Path] = []
    given = ["data/official"]
    for stage in graph:
        for path in map(Path, reads(stage)):
            made = any(path.is_relative_to(out) or out.is_relative_to(path) for out in written)
            assert made or str(path) in given, f"{stage.name}: no stage before it makes {path}"
        written += [Path(out.def_path) for out in stage.outs]


def test_paths_of_the_code_are_paths_of_the_graph(graph):
    """Also those that no stage reads, such as the folders of `evaluate`."""
    outs = [Path(out.def_path) for stage in graph for out in stage.outs]
    mine = {name: path for name, path in vars(paths).items() if name.isupper() and name not in NO_OUTS}
    assert len(mine) > 15
    for name, path in mine.items():
        known = any(path.is_relative_to(out) or out.is_relative_to(path) for out in outs)
        assert known or path in (paths.OFFICIAL, paths.MARKED), name


def test_a_fingerprint_has_all_paths_that_its_function_reads():
    """Or a stopped run could go on with what was made from other files."""
    # A search that matches no function would pass for ever.
    checked = 0
    for file in sorted((SOURCE / "pipeline").rglob("*.py")):
        functions = [node for node in ast.parse(file.read_text()).body if isinstance(node, ast.FunctionDef)]
        for function in functions:
            # Names are compared, as the values are only known in a run.
            for call in calls_of("fingerprint", function):
                missing = paths_read(function) - names_in(call, function)
                assert not missing, f"{file.name}: the fingerprint in {function.name} lacks {missing}"
                checked += 1
            # Units have fingerprints of their own, from several sums.
            if calls_of("code_fingerprint", function):
                sums = calls_of(".*(inputs|sums|inputs_fingerprint)", function)
                known = [names_in(call, function) for call in sums]
                missing = paths_read(function) - set().union(*known)
                assert not missing, f"{file.name}: the units of {function.name} lack {missing}"
                checked += 1
    assert checked > 8


def calls_of(name: str, function: ast.FunctionDef) -> list[ast.Call]:
    calls = [node for node in ast.walk(function) if isinstance(node, ast.Call)]
    return [call for call in calls if re.fullmatch(name, ast.unparse(call.func))]


def paths_read(function: ast.FunctionDef) -> set[str]:
    """The arguments of a function that are paths, without those that say where to write or are not used."""
    written = {"out", "worst", "truth"} if function.name == "generate" else {"out", "worst"}
    annotated = [each for each in function.args.args if each.annotation]
    paths = {each.arg for each in annotated if ast.unparse(each.annotation) == "Path"}
    return {name for name in paths - written if not name.startswith("_")}


def names_in(call: ast.Call, function: ast.FunctionDef) -> set[str]:
    """The names in a call, also those in a tuple that the function makes beforehand: `inputs = (a, b)`."""
    names = {node.id for node in ast.walk(call) if isinstance(node, ast.Name)}
    for node in function.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in names:
            names |= {each.id for each in ast.walk(node.value) if isinstance(each, ast.Name)}
    return names
