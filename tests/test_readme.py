"""The README's commands are commands: every script it calls is there, and takes the flags that it gives."""

import re
import shlex
import sys
from pathlib import Path

import pytest

from segmentation.arguments import ensemble_arguments, evaluation_arguments, training_arguments

ROOT = Path(__file__).resolve().parent.parent
PARSERS = {"train.py": training_arguments, "evaluate.py": evaluation_arguments, "ensemble.py": ensemble_arguments}


def readme_commands() -> list[list[str]]:
    """What stands in code of the README and begins with python or torchrun, from the script's name on."""
    text = (ROOT / "README.md").read_text()
    pieces = re.findall(r"```\n(.*?)```", text, re.DOTALL) + re.findall(r"`([^`\n]+)`", text)
    found = []
    for line in "\n".join(pieces).replace(" && ", "\n").splitlines():
        line = line.split("#")[0].strip().removesuffix("; done").split("; do ")[-1]
        match = re.search(r"(?:^|/|\s)(?:python|torchrun)\b.*?(\S+\.py)\b(.*)", line)
        if match:
            rest = match[2].replace("...", "").replace("$1", "0.3").replace("$2", "0.7").replace("$seed", "0")
            found.append([match[1], *shlex.split(rest)])
    return found


def test_the_readme_holds_commands_of_every_script():
    assert {command[0] for command in readme_commands()} >= {*PARSERS, "tests/benchmarks/parity.py"}


@pytest.mark.parametrize("command", readme_commands(), ids=" ".join)
def test_a_command_of_the_readme_is_one(command: list[str], monkeypatch: pytest.MonkeyPatch):
    script, *flags = command
    assert (ROOT / script).exists()
    if script in PARSERS:
        needs_file = script != "train.py" and not any(flag.endswith(".pt") for flag in flags)
        monkeypatch.setattr(sys, "argv", [script, *flags, *(["a.pt", "b.pt"] if needs_file else [])])
        PARSERS[script]("the README's")
