"""goldfish-eval on a finished run and on a plain Hugging Face folder."""

import json

import pytest
from conftest import TINY


@pytest.fixture(scope="module")
def finished(tmp_path_factory, cache):
    from hydra import compose, initialize_config_dir

    from goldfish.cli.train import plain
    from goldfish.config import home
    from goldfish.run import run
    from goldfish.runs.record import RunDirectory

    with initialize_config_dir(str(home() / "conf"), version_base="1.3"):
        config = plain(compose("train", [*TINY, f"data.cache_dir={cache}"]))
    run_dir = tmp_path_factory.mktemp("runs") / "run"
    RunDirectory(run_dir).claim(config)
    run(config, run_dir, "command")
    return run_dir


def test_a_run_evaluated_again_gives_the_same_rows(command, finished, tmp_path):
    settings = ["evaluation.prefix_tokens=16", "evaluation.suffix_tokens=16", f"out={tmp_path / 'again'}"]
    done = command("goldfish-eval", f"run={finished}", *settings)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "again" / "extraction.jsonl").read_text() == (finished / "extraction.jsonl").read_text()
    again = command("goldfish-eval", f"run={finished}", *settings)
    assert again.returncode == 1 and "already holds an evaluation; nothing was changed" in again.stderr


def test_any_llama_folder_is_evaluated_on_any_documents(command, finished, tmp_path):
    documents = [json.loads(line) for line in (finished / "documents.jsonl").read_text().splitlines()]
    path = tmp_path / "documents.jsonl"
    path.write_text("\n".join(json.dumps({"id": d["id"], "text": d["text"], "split": d["split"]}) for d in documents))
    arguments = [
        f"model={finished / 'model'}",
        f"documents={path}",
        "evaluation.prefix_tokens=8",
        "evaluation.suffix_tokens=8",
    ]
    done = command("goldfish-eval", *arguments, "out=found")
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "found" / "summary.json").read_text())
    assert {"exact_match", "rouge_l", "never_seen_rouge_l"} <= summary["metrics"].keys()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give run=RUN_DIR"),
        (["run=nowhere"], "run=nowhere: no such file or folder"),
        (["run=."], "run=.: no finished run there"),
        (["model=."], "also needs documents=FILE"),
        (["evaluation.prefix=3"], "evaluation.prefix: unknown key; did you mean prefix_tokens?"),
    ],
)
def test_bad_input_is_told_in_a_sentence(command, arguments, words):
    done = command("goldfish-eval", *arguments)
    assert done.returncode == 1 and words in done.stderr and "Traceback" not in done.stderr
