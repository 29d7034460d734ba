"""What the READMEs of the folders name is there, and the map of `pipeline` answers what a newcomer asks."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("pipeline", "model", "stages", "tests")
DETAILS = ("pipeline/avatar", "pipeline/config", "pipeline/ingest", "pipeline/networks", "pipeline/train")
READMES = [f"{folder}/README.md" for folder in FOLDERS + DETAILS]
FILE = re.compile(r"`([\w/.-]+\.(?:py|md|yaml|toml))`")
# What a newcomer asks, in a word that the map has, and in one that the file has to have.
QUESTIONS = {
    "camera convention": "camera",
    "crop": "crop",
    "Eq. 5": "Eq. 5",
    "substitution": "substitute_q",
    "resume": "goes on",
    "quality gate": "min_psnr",
    "fields of a shard": "npy",
    "seeds": "seed",
    "AED": "AED",
    "what a run will take": "takes",
}


def rows(text: str) -> list[list[str]]:
    """The cells of all rows of the tables in a Markdown text."""
    found = []
    for line in text.splitlines():
        if line.startswith("|"):
            cells = line.strip("| ").split("|")
            found.append([cell.strip() for cell in cells])
    return found


@pytest.mark.parametrize("name", READMES)
def test_files_that_a_readme_names_are_there(name):
    path = ROOT / name
    named = [file for file in FILE.findall(path.read_text()) if "NAME" not in file]
    missing = [file for file in named if not (path.parent / file).exists() and not (ROOT / file).exists()]
    assert named and not missing


@pytest.mark.parametrize("folder", ("pipeline", "model"))
def test_a_readme_has_all_packages_of_its_folder(folder):
    packages = {path.parent.name for path in (ROOT / folder).glob("*/__init__.py")}
    cells = [cell for row in rows((ROOT / folder / "README.md").read_text()) for cell in row[:2]]
    named = {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}
    assert packages == {name for name in named if (ROOT / folder / name).is_dir()}


@pytest.mark.parametrize("question", QUESTIONS)
def test_the_map_answers(question):
    # A file that was split keeps its name: what has to be in it shows whether it is still the answer.
    table = rows((ROOT / "pipeline/README.md").read_text())
    [answer] = [cells[1] for cells in table if question in cells[0] and len(cells) == 2]
    texts = [(ROOT / "pipeline" / file).read_text() for file in FILE.findall(answer)]
    assert any(QUESTIONS[question] in text for text in texts)
