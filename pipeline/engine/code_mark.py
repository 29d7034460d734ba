"""The mark of a module: a hash of its code and of all code of ours that it imports, which no comment changes.

A mark is text: a line `<hash>  <name>` for every module, sorted by name. What is hashed is what Python's
parser makes of the module, without docstrings and other strings that stand alone, so that neither a comment
nor a new layout changes it. A file beside a module that the module names in a string, such as a template, has
a line too.

Imports count wherever they stand, also inside of functions; those under `if TYPE_CHECKING` do not. The
packages around a module count, because importing the module runs them.

This module needs the standard library alone: the stage `code` runs in every `dvc repro` and should take a
second.
"""

import ast
import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pipeline.core.errors import UserError
from pipeline.core.paths import MARKS

# The folder that holds the packages, however deep this module lies in them.
SOURCE = Path(__file__).resolve().parents[__name__.count(".")]
PACKAGES = ("model", "pipeline", "stages")
# How a stage is called, how it reports and where it writes cannot change what it makes. A package stands for
# all its modules. The folders are in dvc.yaml, too, so that DVC sees when one moves.
PLUMBING = (
    "pipeline.cli",
    "pipeline.config",
    "pipeline.core.costs",
    "pipeline.core.errors",
    "pipeline.core.paths",
    "pipeline.core.progress",
    "pipeline.core.readable",
    "pipeline.doctor",
    "pipeline.engine.code_mark",
    "pipeline.engine.estimate",
    "pipeline.engine.fingerprint",
    "pipeline.engine.scratch",
    "pipeline.stage",
)
ALWAYS = ("code", "inputs")
FILE_NAME = re.compile(r"\w[\w/.-]*\.\w+")


@dataclass(frozen=True)
class Module:
    """What the text of a module says; modules that it imports are those of ours, by name."""

    digest: str
    # Outside of its functions.
    imports: frozenset[str]
    # Inside of each function at the top level.
    lazy: dict[str, frozenset[str]]
    # Beside the module, and named in it.
    files: tuple[Path, ...]


def code_mark(name: str, function: str | None = None) -> str:
    """The mark of the module `name`. Raises UserError; `function` and errors are those of `closure`."""
    lines = []
    for each in closure(name, function):
        module = _read(each)
        lines.append(f"{module.digest}  {each}\n")
        for path in module.files:
            lines.append(f"{_digest(path.read_bytes())}  {path.relative_to(SOURCE).as_posix()}\n")
    return "".join(lines)


def closure(name: str, function: str | None = None) -> list[str]:
    """Names of the modules of ours that `name` loads, directly or not, when it is imported and run.

    `name` is among them, modules of PLUMBING are not. With `function`, what the other functions of `name`
    import is left out. Raises UserError when an import of ours leads to no file: the code behind it would be
    missed in silence.
    """
    # Modules may import each other in a circle, so each is looked into once.
    seen = {name}
    todo = [*_packages(name), *_loaded(name, function)]
    while todo:
        found = todo.pop()
        if found not in seen and not is_plumbing(found):
            seen.add(found)
            todo += [*_packages(found), *_loaded(found)]
    return sorted(seen)


def stage_names() -> list[str]:
    """The stages that have a mark: the modules of `stages`, apart from those that DVC runs each time."""
    names = [path.stem for path in sorted((SOURCE / "stages").glob("[!_]*.py"))]
    return [name for name in names if name not in ALWAYS]


def stage_marks(stage: str) -> dict[str, str]:
    """The marks of a stage by name: `train`; if its functions import, one for each: `pretrain.motion`."""
    module = f"stages.{stage}"
    lazy = _read(module).lazy
    if not any(lazy.values()):
        return {stage: code_mark(module)}
    return {f"{stage}.{function}": code_mark(module, function) for function in lazy}


def changed_code(stage: str) -> list[str]:
    """Names of what has changed in the code of a stage since the stage `code` ran; empty if it never did."""
    if not any(MARKS.glob(f"{stage}.*")):
        return []
    # Lines that only one of the two texts has: modules that came, went or changed.
    changed: set[str] = set()
    for name, mark in stage_marks(stage).items():
        path = MARKS / f"{name}.txt"
        written = path.read_text() if path.is_file() else ""
        differing = set(written.splitlines()) ^ set(mark.splitlines())
        changed |= {line.partition("  ")[2] for line in differing}
    return sorted(changed)


def module_name(file: str | Path) -> str:
    """The name of the module in `file`, which lies below SOURCE."""
    path = Path(file).resolve().relative_to(SOURCE).with_suffix("")
    return ".".join(path.parent.parts if path.name == "__init__" else path.parts)


def module_file(name: str) -> Path | None:
    """The file of a module or package of ours, if there is one."""
    path = SOURCE.joinpath(*name.split("."))
    candidates = (path.with_suffix(".py"), path / "__init__.py")
    return next((file for file in candidates if file.is_file()), None)


def is_plumbing(name: str) -> bool:
    """Whether a module is in PLUMBING or in a package that is."""
    return any(name == own or name.startswith(f"{own}.") for own in PLUMBING)


def _packages(name: str) -> list[str]:
    """The packages around a module of ours."""
    parts = name.split(".")
    if parts[0] not in PACKAGES:
        return []
    return [".".join(parts[:count]) for count in range(1, len(parts))]


def _loaded(name: str, function: str | None = None) -> frozenset[str]:
    """What a module imports itself."""
    module = _read(name)
    lazy = module.lazy.values() if function is None else [module.lazy[function]]
    return module.imports.union(*lazy)


@cache
def _read(name: str) -> Module:
    file = module_file(name)
    if file is None:
        raise UserError(f"{name} is no module of psi4d: there is no such file in {SOURCE}.")
    tree = ast.parse(file.read_text(encoding="utf-8"), str(file))
    _strip(tree)
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    others = [node for node in tree.body if not isinstance(node, ast.FunctionDef)]
    return Module(
        digest=_digest(ast.dump(tree).encode()),
        imports=frozenset(_imported(others, file)),
        lazy={node.name: frozenset(_imported([node], file)) for node in functions},
        files=tuple(sorted(_named_files(tree, file.parent))),
    )


def _strip(tree: ast.Module) -> None:
    """Take out strings that stand alone, docstrings among them, and what only type checkers see."""
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            node.body = []
        for part in ("body", "orelse", "finalbody"):
            block = getattr(node, part, None)
            # The body of a lambda is no list, but an expression.
            if isinstance(block, list):
                setattr(node, part, [statement for statement in block if not _is_text(statement)])


def _is_text(node: ast.stmt) -> bool:
    value = node.value if isinstance(node, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)


def _imported(nodes: Iterable[ast.AST], file: Path) -> Iterator[str]:
    """Names of the modules of ours that statements import."""
    for top in nodes:
        for node in ast.walk(top):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names if _is_ours(alias.name, node, file))
            elif isinstance(node, ast.ImportFrom):
                yield from _imported_from(node, file)


def _imported_from(node: ast.ImportFrom, file: Path) -> Iterator[str]:
    """Of `from a import b`, a and, if it is a module, a.b. Of a package only modules can be had."""
    if node.level or not node.module:
        raise UserError(f"{file}, line {node.lineno}: write the full name of the module, as everywhere here.")
    if not _is_ours(node.module, node, file):
        return
    yield node.module
    for alias in node.names:
        name = f"{node.module}.{alias.name}"
        if module_file(name) or _is_package(node.module):
            _is_ours(name, node, file)
            yield name


def _is_ours(name: str, node: ast.stmt, file: Path) -> bool:
    """Whether `name` is a module of ours. Raises UserError when it should be one, but has no file."""
    if name.split(".")[0] not in PACKAGES:
        return False
    if module_file(name) is None:
        advice = "Import from the module that defines it: a package offers modules only."
        raise UserError(f"{file}, line {node.lineno}: {name} is no module. {advice}")
    return True


def _is_package(name: str) -> bool:
    file = module_file(name)
    return file is not None and file.name == "__init__.py"


def _named_files(tree: ast.Module, folder: Path) -> set[Path]:
    """Files beside a module whose names are strings in it."""
    # A template or a table is code, too: what is made depends on it.
    constants = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant))
    texts = {value for value in constants if isinstance(value, str) and FILE_NAME.fullmatch(value)}
    paths = {folder / text for text in texts}
    return {path for path in paths if path.suffix != ".py" and path.is_file()}


def _digest(data: bytes) -> str:
    """16 hexadecimal digits, the same whether lines end as on Windows or not."""
    return hashlib.sha256(data.replace(b"\r\n", b"\n")).hexdigest()[:16]
