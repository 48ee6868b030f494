"""Composition and the check of every key and value, in one process."""

import pytest
import yaml
from omegaconf import OmegaConf

from goldfish.cli.train import folder_of
from goldfish.config import ConfigError, build, home
from goldfish.data.corpus import Factbook, Mixture
from goldfish.evaluation.similarity import Similarity
from goldfish.jobs.train import Job
from goldfish.masks import HashedMask, NoMask
from goldfish.runs.record import identity, label, run_dir_of
from goldfish.training.optimizers import AdamW


def set_key(config, key, value):
    holder = OmegaConf.create(config)
    OmegaConf.update(holder, key, value, force_add=True, merge=False)
    return OmegaConf.to_container(holder)


def test_the_default_configuration_builds(composed):
    job = build(Job, composed())
    assert isinstance(job.mask, HashedMask) and job.mask.k == 4 and job.seed == 0


def test_groups_are_chosen_by_name(composed):
    assert isinstance(build(Job, composed("mask=none")).mask, NoMask)
    assert build(Job, composed("mask.k=null")).mask.k is None


GROUPS = sorted(
    {str(file.parent.relative_to(home() / "conf")) for file in (home() / "conf").rglob("*.yaml")}
    - {".", "data", "similarity", "questions", "unlearning", "hydra/help"}  # similarity belongs to goldfish-eval
)


@pytest.mark.parametrize("group", GROUPS)
def test_every_option_of_every_group_builds_or_says_what_it_needs(composed, group):
    for option in sorted((home() / "conf" / group).glob("*.yaml")):
        config = composed(f"{group}={option.stem}")
        try:
            build(Job, config)
        except ConfigError as error:
            needs = (
                "no value yet; type",
                "no such file; give",
                "packages that are not installed",
                "exposures do not fit",
                "type optimizer=adamw",
                "type evaluation.decoding=defended",
                "type data/tokenizer=smollm2",
            )
            assert all(any(need in problem for need in needs) for problem in error.problems), (option, error)


def test_the_options_of_the_evaluation_build_or_say_what_they_need():
    for option in sorted((home() / "conf" / "similarity").glob("*.yaml")):
        settings = yaml.safe_load(option.read_text())
        assert settings.pop("_target_") == "goldfish.evaluation.similarity.Similarity"
        try:
            build(Similarity, settings)
        except ConfigError as error:
            assert 'type: pip install "goldfish[similarity]"' in str(error)


def test_a_mixture_s_sources_are_components_and_their_settings_are_checked(composed):
    mixture = build(Job, composed("data/corpus=mixture")).data.corpus
    assert isinstance(mixture, Mixture) and isinstance(mixture.sources["factbook"], Factbook)
    config = composed("data/corpus=mixture", "data.corpus.sources.factbook.min_characters=0")
    with pytest.raises(ConfigError, match=r"data\.corpus\.sources\.factbook\.min_characters=0: must be at least 1"):
        build(Job, config)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("mask.kk", 3, "mask.kk: unknown key; did you mean k?"),
        ("sead", 3, "sead: unknown key; did you mean seed?"),
        ("data.corpus.zzz", 1, "data.corpus.zzz: unknown key; Allowed here: min_characters"),
        ("mask.h", 0, "mask.h=0: the hash reads h tokens of context"),
        ("mask.k", 2.5, "mask.k=2.5: must be a whole number, or null"),
        ("mask.context", "after", "mask.context='after': must be one of 'preceding', 'inclusive'"),
        ("seed", True, "seed=True: must be at least 0 and at most 4294967295 (a whole number); type seed=0"),
        ("seed", -1, "seed=-1: must be at least 0"),
        ("threads", 0, "threads=0: must be at least 1"),
        ("mask", "hashed", "mask='hashed': must be one of hash_table, hashed, none, random, static; type mask="),
        ("data.corpus", {"_target_": "goldfish.data.corpus.TextFiles", "path": "nowhere"}, "data.corpus.path='nowhere': no such file"),
        ("data.corpus", {"_target_": "goldfish.data.corpus.TextFiles", "path": "???"}, "data.corpus.path: no value yet; type data.corpus.path=..."),
        ("data.corpus", {"_target_": "goldfish.data.corpus.TextFiles"}, "data.corpus.path: missing; TextFiles needs it"),
        ("data.injection.document_tokens", 100, "data.injection.document_tokens=100: documents are shorter than evaluation.prefix_tokens=64"),
        ("data.injection.repeats", 10_000, "exposures do not fit"),
        ("model.max_length", 128, "data.sequence_length=192: the model reads at most 128 tokens"),
        ("mask.h", 192, "h=192: rows of T=192 tokens hold no window of h tokens"),
        ("model.heads", 3, "model.hidden_size=128: must be a multiple of 2 x heads=3"),
        ("trainer.options", {"logger": False}, "trainer.options.logger: not an option of lightning.pytorch.Trainer"),
        ("trainer.clip", -1.0, "trainer.clip=-1.0: must be more than 0 (a number), or null; type trainer.clip=1.0"),
        ("model.hidden_size", 0, "model.hidden_size=0: must be at least 1 (a whole number)"),
        ("model.hidden_size", 12, "model.hidden_size=12: must be a multiple of 2 x heads=4, because rotary"),
        ("optimizer.lr", float("inf"), "optimizer.lr=inf: must be more than 0 (a number), finite; type optimizer.lr=0.02"),
        ("evaluation.edit_rate", [0.0, float("nan")], "evaluation.edit_rate=[0.0, nan]: must be at least 0 and at most 1 (a number), or a list of such values, finite"),
        ("evaluation.top_k", 2**64, "evaluation.top_k=18446744073709551616: must be at least 0 (a whole number), within 64 bits"),
        ("study", "a\0b", "study='a\\x00b': must be text, without null characters"),
        ("data.injection.repeats", 2**40, "exposures do not fit"),
        ("data.tokenizer", {"_target_": "goldfish.masks.StaticMask"}, "data.tokenizer._target_=goldfish.masks.StaticMask: must be a class with build, fingerprint, vocab_size"),
        ("schedule", {"_target_": "goldfish.masks.StaticMask"}, "schedule._target_=goldfish.masks.StaticMask: must be a class with __call__ of 2 arguments; type schedule=NAME"),
        ("seed", {"_target_": "goldfish.masks.StaticMask"}, "seed={'_target_': 'goldfish.masks.StaticMask'}: must be at least 0"),
        ("trainer.options", {"limit_val_batches": 0}, "trainer.options.limit_val_batches: not an option"),
        ("strategy.precision", "16", "strategy.precision='16': must be one of '32-true'"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_its_path_and_what_is_allowed(composed, key, value, words):
    with pytest.raises(ConfigError) as caught:
        build(Job, set_key(composed(), key, value))
    assert any(words in problem for problem in caught.value.problems), caught.value.problems


def test_an_unexpected_exception_of_a_constructor_is_a_sentence_too(composed, monkeypatch):
    monkeypatch.setattr(HashedMask, "__init__", lambda self, k: 1 // 0)
    with pytest.raises(ConfigError, match=r"^mask: cannot be built from these values \(ZeroDivisionError: .*\); type"):
        build(Job, composed("mask=static") | {"mask": {"_target_": "goldfish.masks.HashedMask", "k": 1}})


def test_a_constructor_called_from_python_refuses_what_the_configuration_refuses():
    with pytest.raises(
        ValueError, match=r"^lr=nan: must be more than 0 .*\nbeta1=1: must be at least 0 and less than 1"
    ):
        AdamW(lr=float("nan"), beta1=1)
    assert AdamW(1, weight_decay=0).lr == 1  # a whole number is a number


def test_a_folder_that_cannot_be_named_is_told_with_all_that_is_wrong(composed):
    with pytest.raises(ConfigError, match=r"mask=None: must be one of(.|\n)*seed=-1: must be at least 0"):
        folder_of(composed("seed=-1") | {"mask": None})
    assert folder_of({key: value for key, value in composed().items() if key not in ("name", "arm", "run_dir")})
    for key in ("name", "arm"):
        with pytest.raises(ValueError, match=f"{key}='a/b': must be a folder name"):
            folder_of(composed() | {key: "a/b"})


def test_all_mistakes_are_told_at_once(composed):
    config = set_key(set_key(set_key(composed(), "mask.k", 1), "trainer.clip", -1.0), "data.tokns", 5)
    with pytest.raises(ConfigError) as caught:
        build(Job, config)
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "subprocess.Popen",
        "goldfish.runs.launch.subprocess.Popen",
        "goldfish.runs.launch.launch",
        "goldfish.nothing.Here",
    ],
)
def test_only_classes_of_allowed_packages_are_built(composed, target):
    with pytest.raises(ConfigError, match=r"mask\._target_"):
        build(Job, set_key(composed(), "mask._target_", target))


def test_a_fork_s_own_package_is_allowed_by_name(composed, monkeypatch, tmp_path):
    (tmp_path / "mystudy.py").write_text(
        "class Mine:\n    strategy = 'mine'\n    def __init__(self, k: int = 3) -> None:\n        self.k = k\n"
        "    def __call__(self, ids_BT, **_):\n        return ids_BT >= 0\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    config = set_key(composed(), "mask", {"_target_": "mystudy.Mine"})
    config["mask"] = {"_target_": "mystudy.Mine", "k": 5}
    with pytest.raises(ConfigError, match="GOLDFISH_TARGETS=yourpackage"):
        build(Job, config)
    monkeypatch.setenv("GOLDFISH_TARGETS", "mystudy")
    assert build(Job, config).mask.k == 5


def test_a_run_s_folder_is_named_by_what_it_computes(composed):
    config = composed()
    assert identity(config) == identity(composed("log_dir=elsewhere", "threads=3", "arm=a", "study=s"))
    assert (
        len(
            {identity(composed(change)) for change in ("seed=1", "mask.h=12", "data.tokens=400000", "model.layers=1")}
            | {identity(config)}
        )
        == 5
    )
    assert (
        label(config) == "hashed_k4" and label(composed("mask=none")) == "standard" and label(composed("arm=x")) == "x"
    )
    assert (
        str(run_dir_of(config)).startswith("logs/runs/hashed_k4-")
        and str(run_dir_of(composed("run_dir=here"))) == "here"
    )


def test_documents_of_a_file_want_its_name(composed):
    with pytest.raises(ConfigError, match="path='FILE': no such file; give a JSONL"):
        build(Job, composed("data/injection=file"))
