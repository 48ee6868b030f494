"""Turn the errors of a command into a message and an exit code."""

import difflib
import os
import re
import sys
from collections.abc import Callable
from typing import Any

from hydra.errors import HydraException
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from goldfish.config import path_problem
from goldfish.runs.record import DISK_FULL
from goldfish.tools.extras import install
from goldfish.tools.terminal import complain

# Launchers whose packages are optional extras of goldfish.
EXTRAS = {"submitit_local": "slurm", "submitit_slurm": "slurm", "ray": "ray", "ray_aws": "ray"}


def exit_with_reason(program: str, command: Callable[[], Any]) -> None:
    """Call `command`; an error of the user's input is printed to stderr as one message, with exit code 1."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises its errors instead of printing them
    try:
        command()
    except KeyboardInterrupt:
        complain(f"{program}: interrupted; the same command continues")
        sys.exit(130)
    except (HydraException, OmegaConfBaseException, ValueError, OSError) as error:
        complain(f"{program}: error: {message_of(error)}")
        sys.exit(1)


def message_of(error: BaseException) -> str:
    """Return a message: for a file's error with its name first, for an unknown key with the nearest valid key."""
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        where = f" of {error.filename}" if error.filename else ""
        return f"no space left on the disk{where}; free some space and type the same command to continue"
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return path_problem(error)
    cause: BaseException | None = error
    while cause is not None:
        if (
            isinstance(cause, ConfigAttributeError | ConfigKeyError)
            and cause.full_key
            and cause.parent_node is not None
        ):
            keys = [str(key) for key in cause.parent_node.keys() if key != "_target_"]  # noqa: SIM118 (an OmegaConf node)
            close = difflib.get_close_matches(str(cause.key), keys, n=1, cutoff=0.5)
            hint = f"; did you mean {close[0]}?" if close else ";"
            return f"{cause.full_key}: unknown key{hint} Allowed here: {', '.join(keys)}"
        cause = cause.__cause__
    launcher = re.search(r"Could not find 'hydra/launcher/(\w+)'", str(error))
    if launcher and launcher[1] in EXTRAS:
        return f"hydra/launcher={launcher[1]} is not installed; type: {install(EXTRAS[launcher[1]])}"
    return str(error)
