"""The marks of code: a comment changes none, a line of code changes those of the stages that import it.

Trees of small modules stand in for the project, each with a copy of pipeline/engine/code_mark.py, which looks
for modules in the tree that it lies in.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from pipeline.core.errors import UserError
from pipeline.engine import code_mark
from tests.support.texts import replaced

OWN = Path(code_mark.__file__).relative_to(code_mark.SOURCE)
TREE = {
    "pipeline/__init__.py": '"""Data."""\n',
    # Plumbing, which the mark does not look into.
    "pipeline/config/params.py": "import model.absent\n",
    "pipeline/engine/__init__.py": '"""Packages hold a docstring."""\n',
    "pipeline/engine/unit.py": "SIZE = 3\n",
    "model/__init__.py": "",
    "model/net.py": '''"""A network."""
from pipeline.engine import unit
WIDTH = 4


class Net:
    """Its layers."""

    depth: int = 2

    def forward(self, x):
        """Once."""
        return [x * WIDTH, unit.SIZE]
''',
    "stages/__init__.py": "",
    "stages/train.py": """from model.net import Net
from pipeline.config.params import Params

Net().forward(1)
""",
}


@pytest.fixture
def tree(tmp_path) -> Path:
    write(tmp_path, TREE)
    return tmp_path


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def load(folder: Path) -> ModuleType:
    """The module code_mark as it is in the project that lies in `folder`."""
    file = folder / OWN
    file.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(code_mark.__file__, file)
    spec = importlib.util.spec_from_file_location(code_mark.__name__, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def replace(path: Path, old: str, new: str) -> None:
    path.write_text(replaced(path.read_text(), old, new))


def test_a_mark_names_every_module_and_package(tree):
    names = [line.split()[1] for line in load(tree).code_mark("stages.train").splitlines()]
    packages = ["model", "pipeline", "pipeline.engine", "stages"]
    assert names == sorted([*packages, "model.net", "pipeline.engine.unit", "stages.train"])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("WIDTH = 4\n", "# How wide it is.\nWIDTH = 4  # channels\n"),
        ("WIDTH = 4\n", 'WIDTH = 4\n"""How wide it is."""\n'),
        ('"""A network."""\n', ""),
        ('"""Its layers."""', '"""Its layers, all of them."""'),
        ('        """Once."""\n', ""),
        ("[x * WIDTH, unit.SIZE]", "[\n            (x * WIDTH),\n            unit.SIZE,\n        ]"),
        ("\n", "\r\n"),
    ],
)
def test_comments_docstrings_and_layout_change_no_mark(tree, old, new):
    # Each of these would rerun hours of stages for nothing; the last one is a clone on Windows.
    before = load(tree).code_mark("stages.train")
    path = tree / "model/net.py"
    text = path.read_text()
    path.write_bytes(text.replace(old, new).encode())
    assert path.read_bytes() != text.encode()
    assert load(tree).code_mark("stages.train") == before


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("model/net.py", "WIDTH = 4", "WIDTH = 5"),
        ("model/net.py", "x * WIDTH, unit.SIZE", "unit.SIZE, x * WIDTH"),
        ("model/net.py", "depth: int = 2", "depth: int = 3"),
        ("pipeline/engine/unit.py", "3", "'3'"),
        ("pipeline/__init__.py", "\n", "\nimport os\n"),
        ("stages/train.py", "forward(1)", "forward(2)"),
    ],
)
def test_code_changes_the_line_of_its_module_alone(tree, file, old, new):
    before = load(tree).code_mark("stages.train").splitlines()
    replace(tree / file, old, new)
    after = load(tree).code_mark("stages.train").splitlines()
    changed = [line.split()[1] for line, other in zip(after, before, strict=True) if line != other]
    assert changed == [load(tree).module_name(tree / file)]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("import model.net\nimport model.absent", r"stages/train.py, line 2: model.absent is no module"),
        ("from model.absent import Net", r"line 1: model.absent is no module"),
        ("from pipeline.engine import SIZE", r"line 1: pipeline.engine.SIZE is no module. Import from the"),
        ("def later():\n    from model import Net", r"line 2: model.Net is no module"),
        ("from .train import x", r"line 1: write the full name"),
    ],
)
def test_an_import_that_leads_to_no_file_is_refused(tree, line, words):
    # What is not found would be missing from the mark, and a change of it would rerun nothing.
    (tree / "stages/train.py").write_text(f"{line}\n")
    with pytest.raises(UserError, match=words):
        load(tree).code_mark("stages.train")


def test_what_only_type_checkers_see_does_not_count(tree):
    head = "from typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n    "
    (tree / "stages/train.py").write_text(f"{head}from model.net import Net\n")
    before = load(tree).code_mark("stages.train")
    assert "model.net" not in before
    (tree / "stages/train.py").write_text(f"{head}from model.other import Net\n")
    assert load(tree).code_mark("stages.train") == before


def test_functions_that_import_have_marks_of_their_own(tree):
    text = "import model\n\ndef one():\n    import model.net\n\ndef two():\n    pass\n"
    write(tree, {"stages/train.py": text})
    marks = load(tree).stage_marks("train")
    assert set(marks) == {"train.one", "train.two"}
    assert "model.net" in marks["train.one"]
    assert "model.net" not in marks["train.two"]
    assert "model.net" in load(tree).code_mark("stages.train")


def test_a_template_beside_a_module_counts(tree):
    write(tree, {"model/page.html": "<p>", "model/net.py": 'PAGE = "page.html"\nELSE = "absent.html"\n'})
    before = load(tree).code_mark("stages.train")
    assert "  model/page.html\n" in before
    (tree / "model/page.html").write_text("<b>")
    assert load(tree).code_mark("stages.train") != before


def test_the_plumbing_is_there():
    for name in code_mark.PLUMBING:
        assert code_mark.module_file(name), f"{name} has moved: mend PLUMBING in pipeline/engine/code_mark.py"


GRAPH = """
stages:
  code:
    cmd: python -m stages.code
    always_changed: true
    outs: [data/code]
  first:
    cmd: python -m stages.first
    deps: [data/code/first.txt]
    params: [a]
    outs: [data/first.txt]
  second:
    cmd: python -m stages.second
    deps: [data/code/second.txt, data/first.txt]
    params: [b]
    outs: [data/second.txt]
"""
STAGE = """from pathlib import Path

from model.{name} import OWN
from model.shared import SHARED

if __name__ == "__main__":
    Path("data/{name}.txt").write_text(f"{{OWN}} {{SHARED}} {{Path('params.yaml').read_text()}}")
"""


def call(folder: Path, *command: str) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    state = str(folder / "state")
    environment = os.environ | {"PATH": path, "PYTHONPATH": "elsewhere", "DVC_SITE_CACHE_DIR": state}
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, f"{' '.join(command)}\n{result.stdout}\n{result.stderr}"
    return result.stdout + result.stderr


def ran(output: str) -> list[str]:
    """The stages that DVC ran."""
    return re.findall(r"Running stage '(\w+)'", output)


@pytest.mark.process
def test_dvc_runs_what_imports_the_changed_code(tmp_path):
    """A repository with two stages and the stage `code` of this project."""
    folder = tmp_path / "project"
    shutil.copytree(code_mark.SOURCE / "pipeline", folder / "pipeline")
    (folder / "stages").mkdir()
    for name in ("__init__.py", "code.py"):
        shutil.copy(code_mark.SOURCE / "stages" / name, folder / "stages")
    for name in ("first", "second"):
        write(folder, {f"model/{name}.py": "OWN = 1\n", f"stages/{name}.py": STAGE.format(name=name)})
    write(folder, {"model/__init__.py": "", "model/shared.py": "SHARED = 1\n"})
    write(folder, {"elsewhere/stages/__init__.py": "1 / 0  # on PYTHONPATH, but not ours\n"})
    write(folder, {"dvc.yaml": GRAPH, "params.yaml": "a: 1\nb: 1\n"})
    write(folder, {".gitignore": "/data\n/state\n__pycache__\n"})
    author = ("-c", "user.name=test", "-c", "user.email=test@localhost")
    commit = ("git", *author, "commit", "-q", "-a", "-m", "test")
    for command in (("git", "init", "-q"), ("dvc", "init", "-q"), ("git", "add", "-A")):
        call(folder, *command)
    assert ran(call(folder, "dvc", "repro")) == ["code", "first", "second"]
    call(folder, "git", "add", "-A")
    call(folder, *commit)

    replace(folder / "model/shared.py", "SHARED", '"""Numbers."""\n# Of both.\nSHARED')
    assert ran(call(folder, "dvc", "repro")) == ["code"]
    replace(folder / "model/second.py", "1", "2")
    assert ran(call(folder, "dvc", "repro")) == ["code", "second"]
    call(folder, *commit)

    # A clone with the line ends of Windows, and an experiment in it.
    clone = tmp_path / "clone"
    call(folder, "git", "clone", "-q", "-c", "core.autocrlf=true", str(folder), str(clone))
    assert b"\r\n" in (clone / "model/shared.py").read_bytes()
    shutil.copytree(folder / ".dvc/cache", clone / ".dvc/cache")
    call(clone, "dvc", "checkout", "-q")
    assert call(clone, "dvc", "status").split() == ["code:", "always", "changed"]
    assert ran(call(clone, "dvc", "exp", "run", "-S", "b=2")) == ["code", "second"]
