"""The pages of the documentation, and the commands in their code blocks."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md")), ROOT / "benchmarks/README.md"]
SPACES = sorted((ROOT / "search_spaces").glob("*.yaml"))

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)
CONTINUED = re.compile(r"\s*\\\n\s*")
COMMENT = re.compile(r"\s+#\s.*$")


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def page_name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of a page in a language; the language of commands is ""."""
    return [text for tag, text in BLOCK.findall(text_of(page)) if tag == language]


def commands(page: Path) -> list[str]:
    """The lines of a page's blocks of commands, without comments; continued lines are one."""
    text = "".join(CONTINUED.sub(" ", block) for block in blocks(page, ""))
    return [COMMENT.sub("", line) for line in text.splitlines() if line.strip()]


def commands_of_spaces() -> list[tuple[Path, str]]:
    """(file, command) from the head of every search space: without a profile, and with the laptop's."""
    pairs = []
    for path in SPACES:
        (line,) = re.findall(r"^# Command\s+(.*)$", text_of(path), re.M)
        command, _, option = line.partition(" [")
        pairs += [(path, command), (path, f"{command} {option.rstrip(']')}")]
    return pairs
