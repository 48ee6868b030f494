"""The configuration reference: every key of conf/ has a meaning, a type and its place in a table."""

import configuration
import pytest
import yaml

from goldfish.config import home


@pytest.mark.parametrize("option", configuration.options(), ids=lambda option: option.path.as_posix())
def test_every_key_of_every_file_has_a_meaning_and_a_type(option):
    unsaid = [f"conf/{option.path}: {key.name}" for key in option.keys if not key.meaning]
    assert not unsaid, (
        f"no meaning: {'; '.join(unsaid)}. Write a comment on the key's line, or `key`: ... into the docstring of its class."
    )
    untyped = [f"conf/{option.path}: {key.name}" for key in option.keys if not key.type]
    assert not untyped, f"no type: {'; '.join(untyped)}. Annotate the constructor's argument."


def test_a_key_without_a_comment_takes_the_meaning_of_the_file_it_changes():
    (option,) = (option for option in configuration.options() if option.path.as_posix() == "model/llama_5m.yaml")
    heads = next(key for key in option.keys if key.name == "model.heads")
    assert (heads.type, heads.default, heads.meaning) == ("int", "8", "number of attention heads of a layer")


def test_the_tables_hold_every_key_that_a_file_sets():
    """Counted by another reader of YAML: what is in the files is in the tables."""

    def leaves(node, path=()):
        if not isinstance(node, dict):
            return {path}
        inner = {name: value for name, value in node.items() if name not in configuration.NOT_KEYS}
        return {(*path, "_target_")} if not inner else set().union(*(leaves(v, (*path, n)) for n, v in inner.items()))

    pages = configuration.pages()
    for path in sorted((home() / "conf").rglob("*.yaml")):
        group = path.parent.relative_to(home() / "conf").as_posix()
        if group == "hydra/help":
            continue
        page = pages[f"configuration/{path.stem if group == '.' else group.replace('/', '-')}.md"]
        for *above, name in leaves(yaml.safe_load(path.read_text())):
            assert f"{name}`" in page or any(f"{parent}`" in page for parent in above) or name == "_target_", (
                path,
                name,
            )


@pytest.mark.parametrize(
    ("docstring", "meaning"),
    [
        ("Do it.\n\n`k`: one token in k; None keeps all. `h`: context.", "one token in k; None keeps all"),
        ("Do it.\n\nArgs:\n    k: one token\n        in k.\n    h (int): context.", "one token in k"),
        ("Do it with k.", ""),
    ],
)
def test_a_meaning_is_read_from_a_docstring_of_either_style(docstring, meaning):
    class Some:
        __doc__ = docstring

        def __init__(self, k: int, h: int) -> None: ...

    assert configuration._said_by(Some, "k") == meaning


def test_a_comment_is_told_from_a_hash_in_a_value():
    lines = ['a: "x # y"', "b: [1, 2]  # two numbers", "c:  # a mapping", "  d: 1", "e: x#y"]
    node = yaml.compose("\n".join(lines))
    assert [configuration._comment(lines, value) for _, value in node.value] == ["", "two numbers", "a mapping", ""]
