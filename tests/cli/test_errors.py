"""What a command prints when something outside of it goes wrong."""

import errno
import os

import pytest

from goldfish.cli.errors import exit_with_reason


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_told_with_what_to_do(number, capsys):
    def write():
        raise OSError(number, os.strerror(number), "runs/config.yaml")

    with pytest.raises(SystemExit, match="1"):
        exit_with_reason("goldfish-eval", write)
    assert capsys.readouterr().err == (
        "goldfish-eval: error: no space left on the disk of runs/config.yaml; free some space and type the same "
        "command to continue\n"
    )


def test_another_error_of_the_system_is_told_with_its_file_and_not_taken_for_a_full_disk(capsys):
    def write():
        raise PermissionError(errno.EACCES, "Permission denied", "runs/config.yaml")

    with pytest.raises(SystemExit, match="1"):
        exit_with_reason("goldfish-eval", write)
    assert "'runs/config.yaml': Permission denied" in capsys.readouterr().err
