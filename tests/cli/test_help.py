"""What the commands say about themselves, and how the shell completes them."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir

from goldfish.cli import export, report
from goldfish.config import home

COMMANDS = ("train", "data", "eval", "unlearn")
BIN = Path(sys.executable).parent


def settings_of(command: str) -> dict[str, str]:
    return yaml.safe_load((home() / "conf" / "hydra" / "help" / f"{command}.yaml").read_text())


def examples(command: str, text: str) -> list[list[str]]:
    """The arguments of each example: an indented line that begins with the command; two spaces end it."""
    lines = re.findall(rf"^ +goldfish-{command} ?(.*)$", text, flags=re.MULTILINE)
    return [shlex.split(line.lstrip(" ") and re.split(r" {2,}", line)[0]) for line in lines]


@pytest.mark.parametrize("command_name", COMMANDS)
def test_help_is_in_the_project_s_own_words(command, command_name):
    program = f"goldfish-{command_name}"
    shown = subprocess.run([BIN / program, "--help"], capture_output=True, text=True)
    assert shown.returncode == 0 and not shown.stderr
    first, *_ = shown.stdout.splitlines()
    assert first.startswith(program) and "powered by Hydra" not in shown.stdout
    assert "mask: hash_table, hashed, none, random, static" in shown.stdout and "--cfg job" in shown.stdout
    assert len(shown.stdout.splitlines()) <= 45 and "_target_" not in shown.stdout


@pytest.mark.parametrize("command_name", COMMANDS)
def test_every_example_of_help_composes(command_name):
    found = examples(command_name, settings_of(command_name)["header"])
    assert len(found) >= 3
    for arguments in found:
        overrides = [a.replace("model=", "model_folder=") if command_name == "eval" else a for a in arguments]
        overrides = [re.sub(r",.*", "", one) for one in overrides if one != "-m"]  # of a sweep its first job
        with initialize_config_dir(str(home() / "conf"), version_base="1.3"):
            compose("train" if command_name == "data" else command_name, overrides)


@pytest.mark.parametrize(("program", "module"), [("report", report), ("export", export)])
def test_the_commands_without_hydra_show_three_examples_too(program, module, capsys):
    with pytest.raises(SystemExit) as left:
        module.main(["--help"])
    shown = capsys.readouterr().out
    assert left.value.code == 0 and f"goldfish-{program} " in shown.partition("\n\n")[2].splitlines()[0]
    assert len(examples(program, shown)) == 3


@pytest.mark.parametrize("command_name", COMMANDS)
@pytest.mark.parametrize("flags", ["--cfg job --resolve", "-c hydra", "--info all"])
def test_the_composed_configuration_is_shown_without_running(tmp_path, command_name, flags):
    shown = subprocess.run(
        [BIN / f"goldfish-{command_name}", *flags.split()], cwd=tmp_path, capture_output=True, text=True
    )
    assert shown.returncode == 0 and "Traceback" not in shown.stdout + shown.stderr
    assert {"--cfg": "strategy:", "-c": "hydra/help: ", "--info": "strategy/single"}[flags.split()[0]] in shown.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command_name", COMMANDS)
def test_bash_completes_groups_and_options(command_name):
    """The whole way: what `-sc install=bash` prints is evaluated, and bash asks it."""
    program, group, option = f"goldfish-{command_name}", "strategy", "fsdp"
    line = f"{program} {group}={option}"
    script = f'eval "$({program} -sc install=bash)"; COMP_LINE="{line}" COMP_CWORD=1; hydra_bash_completion; echo "${{COMPREPLY[@]}}"'
    done = subprocess.run(
        ["bash", "-c", script], env=os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}"}, capture_output=True, text=True
    )
    assert done.stdout.split() == ["strategy=fsdp", "strategy=fsdp2"], done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_lists_all_masks_and_experiments(shell):
    for line, wanted in [("mask=", "conf/mask"), ("experiment=", "experiments")]:
        done = subprocess.run(
            [BIN / "goldfish-train", "-sc", f"query={shell}"],
            env=os.environ | {"COMP_LINE": f"goldfish-train {line}"},
            capture_output=True,
            text=True,
        )
        assert done.stdout.split() == sorted(f"{line}{path.stem}" for path in (home() / wanted).glob("*.yaml"))
