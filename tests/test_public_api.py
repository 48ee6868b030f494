"""`from goldfish import ...`: the public names, their examples, and the fifteen lines of a Lightning user."""

import ast
import doctest
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import goldfish
from goldfish.config import home

PAGE = home() / "docs" / "how-to" / "trainer.md"


def test_goldfish_lists_its_names_without_importing_torch():
    script = "import sys, goldfish; print(*dir(goldfish)); sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert set(goldfish.__all__) <= set(done.stdout.split())
    with pytest.raises(AttributeError, match="module 'goldfish' has no attribute 'HashMask'"):
        goldfish.HashMask  # noqa: B018


def test_type_checkers_see_the_names_that_python_imports():
    tree = ast.parse(Path(inspect.getsourcefile(goldfish)).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {name.asname: node.module for node in block.body for name in node.names}
    assert seen == goldfish._MODULES
    for name in goldfish.__all__:
        assert getattr(goldfish, name) is getattr(sys.modules[seen[name]], name)


@pytest.mark.parametrize("name", goldfish.__all__)
def test_a_public_name_has_a_docstring_whose_example_says_what_comes_out(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = getattr(goldfish, name)
    text = inspect.getdoc(found)
    assert re.match(r"[A-Z].*[.:]\n\n", text) and ">>> from goldfish import" in text
    for argument in inspect.signature(found).parameters:
        assert f"`{argument}`" in text, f"{name}: {argument} is not explained"
    example = doctest.DocTestParser().get_doctest(text, {}, name, None, 0)
    runner = doctest.DocTestRunner(verbose=False)
    assert runner.run(example).failed == 0 and example.examples


def test_the_example_of_the_page_is_fifteen_lines():
    (block,) = (code for code in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL) if "Trainer(" in code)
    assert len(block.splitlines()) <= 15 and max(map(len, block.splitlines())) <= 100
    for name in ("fit", "validate", "EarlyStopping", "ModelCheckpoint", "load_from_checkpoint", "extract"):
        assert name in block
