"""How dense the code is: `python -m tests.style` prints a row of numbers for every folder, and the total.

A code line is neither blank nor a comment nor part of a docstring. Syntax nodes are all nodes that Python's
parser makes, apart from docstrings. A nested comprehension is one that stands inside of another.
"""

import ast
import subprocess
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
LONG = 100  # characters
COLUMNS = ("code lines", "nodes a line", "nested / 100", f"over {LONG}, %", "comments / 100")
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


@dataclass(frozen=True)
class Counts:
    """What was counted in some files."""

    lines: int = 0  # all of them
    code: int = 0  # lines of code
    nodes: int = 0
    nested: int = 0  # comprehensions
    long: int = 0  # lines of any kind
    comments: int = 0  # lines with nothing else

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(*(mine + theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))

    def row(self) -> list[str]:
        """The numbers of COLUMNS."""
        code, lines = max(self.code, 1), max(self.lines, 1)
        nested, comments = 100 * self.nested / code, 100 * self.comments / code
        return [
            f"{self.code:,}",
            f"{self.nodes / code:.1f}",
            f"{nested:.2f}",
            f"{100 * self.long / lines:.1f}",
            f"{comments:.1f}",
        ]


def count(text: str) -> Counts:
    """Count in the text of a module."""
    tree = ast.parse(text)
    nodes = list(ast.walk(tree))
    docstrings = [node for node in nodes if _is_docstring(node)]
    documented = {number for node in docstrings for number in range(node.lineno, node.end_lineno + 1)}
    lines = text.splitlines()
    written = [line.strip() for number, line in enumerate(lines, start=1) if number not in documented]
    comments = sum(line.startswith("#") for line in written)
    comprehensions = [node for node in nodes if isinstance(node, COMPREHENSIONS)]
    inner = {id(node) for outer in comprehensions for node in _inside(outer)}
    return Counts(
        lines=len(lines),
        code=sum(bool(line) for line in written) - comments,
        nodes=len(nodes) - 2 * len(docstrings),  # a statement and its constant
        nested=len(inner),
        long=sum(len(line) > LONG for line in lines),
        comments=comments,
    )


def _is_docstring(node: ast.AST) -> bool:
    value = node.value if isinstance(node, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)


def _inside(outer: ast.AST) -> list[ast.AST]:
    """The comprehensions within a comprehension."""
    return [node for node in ast.walk(outer) if node is not outer and isinstance(node, COMPREHENSIONS)]


def count_folders(paths: Sequence[Path]) -> dict[str, Counts]:
    """The counts of the modules at `paths`, relative to ROOT, by folder."""
    counts: dict[str, Counts] = defaultdict(Counts)
    for path in paths:
        counts[path.parent.as_posix()] += count((ROOT / path).read_text())
    return dict(sorted(counts.items()))


def main() -> None:
    listed = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True)
    folders = count_folders([Path(line) for line in listed.stdout.splitlines()])
    table = Table("folder", *COLUMNS, box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for folder, counts in folders.items():
        table.add_row(folder, *counts.row())
    table.add_row("total", *sum(folders.values(), Counts()).row(), style="bold")
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
