"""Every code block of the documentation is what it claims to be: Python runs, YAML is read, commands work."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from lowbit import Plan, Preprocessing, Recipe

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
READERS: dict[str, Any] = {"recipe": Recipe.from_dict, "plan": Plan.from_dict, "preprocessing": Preprocessing.from_dict}
# Blocks that show something and cannot be run: output, grammar, the developers' own commands.
SHOWN = {"", "text", "sh", "console"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    page: Path
    line: int
    language: str
    code: str

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks() -> list[Block]:
    fence = re.compile(r"^```(.*?)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    return [
        Block(page=page, line=text.count("\n", 0, match.start()) + 1, language=match[1].strip(), code=match[2])
        for page in PAGES
        for text in [page.read_text(encoding="utf-8")]
        for match in fence.finditer(text)
    ]


BLOCKS = blocks()
PAGES_WITH_PYTHON = [page for page in PAGES if any(b.page == page and b.language == "python" for b in BLOCKS)]


def commands(page: Path) -> list[str]:
    """Return the `lowbit` commands of a page, in order."""
    found = []
    for block in BLOCKS:
        if block.page == page and block.language in {"sh", "console", ""}:
            lines = block.code.replace("\\\n", " ").splitlines()
            found += [
                line for line in (line.strip().removeprefix("$ ") for line in lines) if line.startswith("lowbit ")
            ]
    return found


PAGES_WITH_COMMANDS = [page for page in PAGES if commands(page)]


def test_there_is_something_to_check() -> None:
    assert len(BLOCKS) > 10
    assert {block.page.name for block in BLOCKS if block.language == "python"} >= {
        "recipes.md",
        "data.md",
        "formats.md",
    }


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_language_is_one_that_is_checked(block: Block) -> None:
    assert block.language in SHOWN | {"python"} | {f"yaml {kind}" for kind in READERS}


@pytest.mark.parametrize("page", PAGES_WITH_PYTHON, ids=lambda page: page.name)
def test_python_runs(page: Path, user_folder: Path) -> None:
    """The blocks of a page run one after the other in one namespace, as a reader would type them."""
    del user_folder
    namespace: dict[str, object] = {"__name__": "__docs__"}
    for block in BLOCKS:
        if block.page == page and block.language == "python":
            # Line numbers of a traceback are those of the page.
            source = "\n" * block.line + block.code
            exec(compile(source, str(page), "exec"), namespace)


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language.startswith("yaml ")], ids=str)
def test_yaml_is_read_and_written_back(block: Block) -> None:
    kind = block.language.partition(" ")[2]
    data = yaml.safe_load(block.code)
    value = READERS[kind](data)
    again = READERS[kind](yaml.safe_load(yaml.safe_dump(value.to_dict())))
    assert again == value
    assert data.items() <= value.to_dict().items() or kind == "preprocessing"


@pytest.mark.parametrize("page", PAGES_WITH_COMMANDS, ids=lambda page: page.name)
def test_commands_run(
    page: Path, user_folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commands of a page run one after the other in one folder, as a reader would type them."""
    from lowbit.cli import main

    del user_folder
    monkeypatch.setenv("LOWBIT_TRACEBACK", "1")
    for command in commands(page):
        status = main(shlex.split(command, comments=True)[1:])
        assert status == 0, f"{command}: {''.join(capfd.readouterr())}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    missing = [
        target
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text)
        if "://" not in target and not (page.parent / target).exists()
    ]
    assert not missing
