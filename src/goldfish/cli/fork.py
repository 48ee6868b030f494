"""python -m goldfish.cli.fork NAME DIR: copy this checkout into DIR as a package of another name."""

import argparse
import importlib.util
import keyword
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

PACKAGE = Path(__file__).parents[1].name
ROOT = Path(__file__).parents[3]
# Files that are copied unchanged: license, citation, history and measured results.
KEPT = re.compile(r"(^|/)(LICENSE|CITATION\.cff|CHANGELOG\.md)$|\.(csv|json|svg)$")
# Keeps the name of the method, such as "the goldfish loss" and "goldfish k=4".
METHOD = r"(?![ -](loss|mask|k\b|with k\b|paper|code|model|authors)|, k\b)"


def main(argv: Sequence[str] | None = None) -> int:
    """Write the fork; return 0, or print the reason and return 1 if the name or the folder is refused."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {PACKAGE}.cli.fork",
        description=f"Copy this checkout (files that git tracks) into DIR and rename the package {PACKAGE} to NAME:\n"
        f"folders, imports, _target_s, commands ({PACKAGE}-train becomes NAME-train), environment variables, docs.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", metavar="NAME", help="lower-case letters, digits and underscores")
    parser.add_argument("folder", metavar="DIR", type=Path, help="a folder that does not exist yet")
    arguments = parser.parse_args(argv)
    try:
        count = fork(arguments.name, arguments.folder)
    except (ValueError, OSError) as error:
        print(f"fork: error: {error}", file=sys.stderr)
        return 1
    print(f"{arguments.folder}: {count} files, package {arguments.name}. Next, type:")
    print(f"  cd {arguments.folder} && git init && git add -A && git commit -m 'Fork of {PACKAGE}' && make install")
    return 0


def fork(name: str, folder: Path) -> int:
    """Copy and rename; return the number of files. ValueError if the name is invalid or taken, or the folder exists."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise ValueError(
            f"NAME={name!r}: must be lower-case letters, digits and underscores; type for example my_study"
        )
    if name in (PACKAGE, "hydra_plugins", "conf", "tests") or importlib.util.find_spec(name):
        raise ValueError(f"NAME={name}: a package with this name exists already; type another name")
    if folder.exists():
        raise ValueError(f"DIR={folder}: exists already; nothing was changed. Type a folder that does not exist yet")
    listed = subprocess.run(["git", "-C", ROOT, "ls-files", "-z"], capture_output=True, text=True)
    paths = [Path(path) for path in listed.stdout.split("\0") if path and (ROOT / path).is_file()]
    if not paths:
        raise ValueError(f"{ROOT}: not a checkout with git; type the command in a clone of the repository")
    for path in paths:
        source = ROOT / path
        target = folder / Path(*(_renamed_folder(part, name) for part in path.parts))
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)
        text = None if KEPT.search(path.as_posix()) else _text(source)
        if text is not None:
            target.write_text(renamed(text, name), encoding="utf-8")
    if importlib.util.find_spec("ruff"):  # the new name changes the order of imports and the length of lines
        for command in (["check", "--select", "I", "--fix"], ["format"]):
            subprocess.run([sys.executable, "-m", "ruff", *command, "--quiet", "--no-cache", folder], check=True)
    return len(paths)


def renamed(text: str, name: str) -> str:
    """Return the text with the package's name replaced, but not the method's."""
    text = re.sub(rf"\b{PACKAGE.upper()}_", f"{name.upper()}_", text)
    text = re.sub(rf"\b{PACKAGE}_(?=sweeper|experiments)", f"{name}_", text)  # packages of src/hydra_plugins
    return re.sub(rf"(?<!\w){PACKAGE}\b{METHOD}", name, text)


def _renamed_folder(part: str, name: str) -> str:
    return name + part.removeprefix(PACKAGE) if part == PACKAGE or part.startswith(f"{PACKAGE}_") else part


def _text(path: Path) -> str | None:
    """Return the content of a text file; None for a binary file."""
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        return None


if __name__ == "__main__":
    sys.exit(main())
