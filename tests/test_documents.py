"""What the documents point at is there: files, headings, commands and their options."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from apl_guard.cli import app

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "trainer" / "minifaces" / "weights" / "README.md", *ROOT.glob("docs/*.md")]

pytestmark = pytest.mark.skipif(not (ROOT / "docs").exists(), reason="needs the sources")


def headings(document):
    """The names under which a reader can point at the headings, as GitHub makes them."""
    text = re.sub(r"```.*?```", "", document.read_text(), flags=re.DOTALL)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.*)$", text, re.M)}


def commands(document):
    """Each `apl-guard …` that a document gives, as words."""
    for block in re.findall(r"```sh\n(.*?)```", document.read_text(), re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while words and re.match(r"[A-Z_]+=", words[0]):
                del words[0]
            if words and words[0] == "apl-guard":
                yield words[1:]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_link_leads_somewhere(document):
    """To a file of the checkout, and to a heading that it has."""
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        path, _, heading = target.partition("#")
        if "://" not in target:
            found = document.parent / path if path else document
            assert found.exists(), target
            assert not heading or heading in headings(found), target


@pytest.fixture(name="program", scope="module")
def _program():
    return typer.main.get_command(app)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_command_and_option_exists(document, program):
    """As the program knows them now."""
    for words in commands(document):
        command = program
        while hasattr(command, "commands"):
            assert words[0] in command.commands, words
            command = command.commands[words.pop(0)]
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        assert {word.partition("=")[0] for word in words if word.startswith("--")} <= {*known, "--help"}, words


def test_there_are_commands_to_look_at():
    """Else the one above would hold of nothing."""
    assert sum(len(list(commands(document))) for document in DOCUMENTS) > 50
