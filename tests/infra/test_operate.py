"""The pages for people: their commands are ones that exist."""

import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest

from flows.arguments import build_parser

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "docs/operate.md", "docs/datasets.md")


def commands(page: str) -> list[list[str]]:
    """The words of each line of the page's shell blocks, without comments."""
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^ *```bash\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := split(line))]


def split(line: str) -> list[str]:
    try:
        return shlex.split(line, comments=True)
    except ValueError:  # the body of a here document
        return []


def anomalyclip_arguments(page: str) -> list[list[str]]:
    named = [(words, i) for words in commands(page) for i, word in enumerate(words) if Path(word).name == "anomalyclip"]
    return [
        words[i + 1 :]
        for words, i in named
        if words[i + 1 :] and words[i - 1] not in ("--pool", "--namespace", "namespace")
    ]


@pytest.mark.parametrize("page", PAGES)
def test_commands_of_a_page_are_parsed(page: str, capsys: pytest.CaptureFixture[str]):
    found = anomalyclip_arguments(page)
    assert len(found) > 2
    for arguments in found:
        try:
            build_parser().parse_args(arguments)
        except SystemExit:
            pytest.fail(f"anomalyclip {shlex.join(arguments)}: {capsys.readouterr().err}")


@pytest.mark.parametrize("page", PAGES)
def test_targets_modules_and_files_of_a_page_exist(page: str):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for words in commands(page):
        for before, word in pairwise(words):
            if before == "make":
                assert re.search(rf"^{re.escape(word)}:", makefile, re.MULTILINE), f"make {word}"
            if before == "-m" and word.partition(".")[0] in ("infra", "benchmarks"):
                assert (ROOT / f"{word.replace('.', '/')}.py").is_file(), word
            if word.startswith("infra/") and not word.endswith(".env"):
                assert (ROOT / word).exists(), word
