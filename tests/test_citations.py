"""Every "facts n.m" in the code, the parameters and the READMEs is a section of model/FACTS.md."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FACTS = ROOT / "model" / "FACTS.md"
FOLDERS = ("model", "pipeline", "stages", "tests")
SUFFIXES = {".html", ".md", ".py", ".toml", ".yaml"}

NUMBER = r"\d+(?:\.\d+)*"
LIST = rf"{NUMBER}(?:(?:, and|,| and| to) {NUMBER})*"
CITATION = re.compile(rf"\bfacts (?:digest )?(?:(?:of|sections?|table) )?({LIST})", re.IGNORECASE)
# Within FACTS.md itself a section is also named without its file.
CROSS_REFERENCE = re.compile(rf"\b(?:(?:section|table) |(?:see|as|of) (?=\d+\.))({NUMBER})")


def cited(text: str, pattern: re.Pattern[str] = CITATION) -> Iterator[str]:
    """The numbers of all sections that a text cites; "4.1 to 4.4" is four of them.

    A citation may go on in the next line.
    """
    joined = re.sub(r"\s*\n[ \t]*(?:# *)?", " ", text)
    for match in pattern.finditer(joined):
        yield from expanded(match[1])


def expanded(numbers: str) -> Iterator[str]:
    """The single numbers of "2.1 to 2.4", "4.2 and 6" or "5.5, 10.2"."""
    words = re.sub(r",| and", "", numbers).split()
    for position, word in enumerate(words):
        if word != "to":
            yield word
            continue
        before, first = split(words[position - 1])
        after, last = split(words[position + 1])
        if before != after or first > last:
            raise ValueError(f"facts {numbers}: the two ends of the range are not of one section")
        yield from (f"{before}{number}" for number in range(first + 1, last))


def split(number: str) -> tuple[str, int]:
    """ "4.12" as "4." and 12."""
    *chapter, last = number.rpartition(".")
    return "".join(chapter), int(last)


def sections(text: str) -> set[str]:
    """The numbers of all sections of a Markdown text."""
    return set(re.findall(rf"^##+ ({NUMBER})\.? ", text, re.MULTILINE))


def files() -> list[Path]:
    inside = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*")]
    texts = {path for path in (*ROOT.iterdir(), *inside) if path.suffix in SUFFIXES}
    # params.yaml is the user's, who may write into it what he likes; the presets have what we say.
    return sorted(texts - {FACTS, Path(__file__), ROOT / "params.yaml"})


def test_every_citation_is_a_section() -> None:
    known = sections(FACTS.read_text())
    found = {path.relative_to(ROOT): set(cited(path.read_text())) for path in files()}
    assert {path: numbers - known for path, numbers in found.items() if numbers - known} == {}
    # A pattern that finds nothing would find nothing wrong either.
    assert sum(map(len, found.values())) > 80
    assert found[Path("pipeline/config/presets/demo.yaml")] == {"1.8"}


def test_the_facts_refer_to_sections_of_their_own() -> None:
    text = FACTS.read_text()
    numbers = set(cited(text, CROSS_REFERENCE))
    assert {"1.4", "2.6", "3.5", "4.3"} <= numbers <= sections(text) | {"1"}  # Table 1 is the paper's


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("(paper section 4.1, facts 2.1, 2.7 and 3).", ["2.1", "2.7", "3"]),
        ("Facts 4.1 to 4.4; facts 1 to 3 and 6", ["4.1", "4.2", "4.3", "4.4", "1", "2", "3", "6"]),
        (
            "facts 11, issue 13; facts 3.2 point 4; facts digest sections 10.2, and 12",
            ["11", "3.2", "10.2", "12"],
        ),
        ("# it is so (facts\n    # 5.4, 6) and\n  facts\n  7 of 9", ["5.4", "6", "7"]),
        ("the facts, 3 of them, and 4 artifacts 5.1", []),
    ],
)
def test_citations_are_found(text: str, numbers: list[str]) -> None:
    assert list(cited(text)) == numbers


def test_an_invented_citation_is_noticed() -> None:
    known = sections(FACTS.read_text())
    invented = set(cited("facts 1 and 99, facts 4.7 to 4.10, facts 2.1.5, facts 3.9")) - known
    assert invented == {"99", "4.9", "4.10", "2.1.5", "3.9"}
    for text in ("facts 4.1 to 5.2", "facts 4.3 to 4.1", "facts 4 to 4.2"):
        with pytest.raises(ValueError, match="range"):
            list(cited(text))
