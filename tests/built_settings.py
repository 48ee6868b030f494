"""Run by the Python of an environment: build what every file of conf/ and experiments/ says, print what is refused."""

import json
import sys

from hydra import compose, initialize_config_dir
from omegaconf.errors import OmegaConfBaseException

from goldfish.cli.train import plain
from goldfish.config import ConfigError, build, home
from goldfish.jobs.evaluate import EvaluationJob
from goldfish.jobs.train import Job
from goldfish.jobs.unlearn import UnlearningJob

JOBS = {"train": Job, "eval": EvaluationJob, "unlearn": UnlearningJob}
OTHER = {"similarity": "eval", "questions": "unlearn", "unlearning": "unlearn"}  # groups that goldfish-train has not


def refused(name: str, *overrides: str) -> list[str]:
    """The problems of conf/NAME.yaml with these overrides."""
    try:
        build(JOBS[name], plain(compose(name, list(overrides))))
    except ConfigError as error:
        return error.problems
    except OmegaConfBaseException as error:  # a value that is still to be given
        return [str(error)]
    return []


def main() -> None:
    found = {}
    for file in sorted((home() / "conf").rglob("*.yaml")):
        group = str(file.parent.relative_to(home() / "conf"))
        if group == "hydra/help":  # texts of --help
            continue
        name, choice = (file.stem, []) if group == "." else (OTHER.get(group, "train"), [f"{group}={file.stem}"])
        found[str(file.relative_to(home()))] = refused(name, *choice)
    for file in sorted((home() / "experiments").glob("*.yaml")):
        name = "unlearn" if "# goldfish-unlearn" in file.read_text() else "train"
        found[str(file.relative_to(home()))] = refused(name, f"experiment={file.stem}")
    json.dump(found, sys.stdout)


with initialize_config_dir(str(home() / "conf"), version_base="1.3"):
    main()
