"""Every `divsel` command that the README, the help and the heads of configuration files show is one that `divsel` accepts."""

import inspect
import re
import shlex
from pathlib import Path

import pytest
import typer

from divsel_ray.cli import app

ROOT = Path(__file__).parents[1]


def of_readme():
    """The commands of its code blocks."""
    blocks = re.findall(r"^```bash\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [part for block in blocks for line in block.splitlines() for part in line.split("&&")]


def of_help():
    """The examples of every command."""
    texts = [inspect.getdoc(command.callback) for command in app.registered_commands]
    return [example for text in texts for example in re.findall(r"^Example: `(divsel [^`]*)`", text, re.MULTILINE)]


def of_comments():
    """What is set in from the other text of a comment."""
    files = [ROOT / "cluster.yaml", *sorted((ROOT / "jobs").glob("*/*.yaml"))]
    texts = [file.read_text(encoding="utf-8") for file in files]
    return [line for text in texts for line in re.sub(r"\\\n#", "", text).splitlines() if line.startswith("#   divsel ")]


def commands_in(lines):
    """Their words after `divsel`, up to where the shell redirects."""
    split = [shlex.split(line.removeprefix("#"), comments=True) for line in lines]
    return [words[1 : words.index(">") if ">" in words else None] for words in split if words[:1] == ["divsel"]]


def parse(words):
    """Parse names, options and the types of what is given, and run nothing."""
    group = typer.main.get_command(app)
    context = group.make_context("divsel", list(words))
    name, command, rest = group.resolve_command(context, list(words))
    return command.make_context(name, rest, parent=context)


@pytest.mark.parametrize("words", commands_in([*of_readme(), *of_help(), *of_comments()]), ids=shlex.join)
def test_a_command_that_is_shown_is_accepted(words):
    assert parse(words).info_name == words[0]


@pytest.mark.parametrize("shown", [of_readme, of_help, of_comments])
def test_commands_are_found_where_they_are_shown(shown):
    assert {"run", "submit", "tune"} & {words[0] for words in commands_in(shown())}


@pytest.mark.parametrize("words", ["slect data", "plan job.yaml --grid 2", "evaluate run --limit all", "quickstart --out"])
def test_a_command_that_is_none_is_noticed(words):
    with pytest.raises(Exception, match=r"No such|should be a valid integer|requires an argument"):
        parse(words.split())
