"""Preparation that is killed, meets a full disk or another process, and caches that were damaged."""

import errno
import itertools
import json
import multiprocessing
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from goldfish.data import cache as cache_module
from goldfish.data import streams, tokenizer
from goldfish.data.cache import Appended, Damaged, seal, unseal
from goldfish.data.corpus import Document
from goldfish.data.injection import Injection
from goldfish.data.packing import prepare
from goldfish.data.tokenizer import TrainedBPE

INJECTION = Injection(documents=2, never_seen=2, document_tokens=30, held_out=0.3)


class Generated:
    """240 documents, some alike. Reading document `die_at`, counted over all readings, kills the process."""

    def __init__(self, die_at: int = -1, slow: float = 0.0) -> None:
        self._count, self._die_at, self._slow = itertools.count(), die_at, slow

    def documents(self):
        for index in range(240):
            if next(self._count) == self._die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(self._slow)
            words = np.random.default_rng(index % 200).integers(700, size=60)
            yield Document(f"d{index}", f"g{index % 50}", " ".join(f"w{word}" for word in words))

    def fingerprint(self) -> str:
        return "generated"


def ask(cache: Path, corpus: Generated | None = None):
    """Prepare with small batches, saved after each; what is told, and the result."""
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer, "BATCH_DOCUMENTS", 10)
        patch.setattr(streams, "SAVE_TOKENS", 1)
        patch.setattr("goldfish.data.corpus.remembered.MOST_CHARACTERS", 0)
        prepared = prepare(
            corpus or Generated(),
            TrainedBPE(300),
            INJECTION,
            0.1,
            cache,
            lambda message, **numbers: said.append(message),
        )
    return said, prepared


def content(folder: Path) -> dict[str, object]:
    """Everything in a cache folder but times."""
    files: dict[str, object] = {
        str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.*") if path.is_file()
    }
    sealed = json.loads(files.pop("meta.json"))
    sealed["meta"]["statistics"].pop("seconds")
    files["meta"] = sealed["meta"], {name: (size, sha256) for name, (size, *_, sha256) in sealed["files"].items()}
    return files


def folder_of(cache: Path) -> Path:
    (folder,) = (path for path in cache.iterdir() if path.is_dir())
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A cache that was prepared in one go."""
    cache = tmp_path_factory.mktemp("whole")
    ask(cache)
    return cache


def child(cache: Path, die_at: int = -1, slow: float = 0.0, name: str = "told"):
    """Start a process that prepares and writes down what it is told; goldfish is imported once for all of them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["goldfish.data.packing", "pytest"])
    arguments = {"CACHE": cache, "DIE_AT": die_at, "SLOW": slow, "TOLD": cache / name}
    process = context.Process(target=runpy.run_path, args=(__file__, arguments, "child"))
    process.start()
    return process


def killed(cache: Path, die_at: int) -> None:
    process = child(cache, die_at)
    process.join(60)
    assert process.exitcode == -signal.SIGKILL


def test_a_preparation_that_is_killed_again_and_again_makes_what_an_uninterrupted_one_makes(tmp_path, whole):
    cache = tmp_path / "cache"
    cache.mkdir()
    killed(cache, 100)  # splitting
    killed(cache, 240 + 100)  # training the tokenizer
    killed(cache, 3 * 240 + 100)  # tokenizing
    progress = json.loads((folder_of(cache) / "progress.json").read_text())["state"]
    assert 0 < progress["done"] <= 100
    killed(cache, 200)  # tokenizing, continued: the other readings do not happen again
    assert progress["done"] < json.loads((folder_of(cache) / "progress.json").read_text())["state"]["done"] <= 200
    said, _ = ask(cache)
    assert "training the tokenizer" not in said and not any("damaged" in message for message in said)
    assert content(folder_of(cache)) == content(folder_of(whole))


def test_what_was_written_after_the_last_save_does_not_count(tmp_path, whole):
    cache = tmp_path / "cache"
    cache.mkdir()
    killed(cache, 3 * 240 + 100)
    for name in ("final/background.bin", "validation.bin", "found.bin", "background_documents.bin"):
        with (folder_of(cache) / name).open("ab") as file:
            file.write(b"half a batch")
    said, _ = ask(cache)
    assert not any("damaged" in message for message in said)
    assert content(folder_of(cache)) == content(folder_of(whole))


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def edit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)


def edit_and_put_the_time_back(path: Path) -> None:
    before = path.stat()
    edit(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("progress.json", cut),
        ("final/background.bin", cut),
        ("final/background.bin", edit),
        ("setup/candidates.npy", edit),
        ("setup/meta.json", cut),
    ],
)
def test_a_damaged_unfinished_preparation_is_thrown_away(tmp_path, whole, half, name, damage):
    cache = tmp_path / "cache"
    shutil.copytree(half, cache)
    damage(folder_of(cache) / name)
    said, _ = ask(cache)
    assert any("starting again: the files of a stopped preparation are damaged" in message for message in said)
    assert content(folder_of(cache)) == content(folder_of(whole))


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """A cache whose preparation was killed halfway."""
    cache = tmp_path_factory.mktemp("half")
    killed(cache, 3 * 240 + 100)
    return cache


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("background.bin", cut),
        ("validation.bin", edit),
        ("background_starts.bin", edit_and_put_the_time_back),
        ("tokenizer/tokenizer.json", edit),
        ("tokenizer/tokenizer.json", Path.unlink),
        ("meta.json", cut),
        ("meta.json", Path.unlink),
        ("meta.json", lambda path: path.write_text("[]")),
        ("meta.json", lambda path: path.write_text(path.read_text().replace("injected", "never_seen", 1))),
    ],
)
def test_a_damaged_cache_is_noticed_told_and_prepared_again(tmp_path, whole, name, damage):
    cache = tmp_path / "cache"
    shutil.copytree(whole, cache)
    damage(folder_of(cache) / name)
    said, prepared = ask(cache)
    assert any(message.startswith("preparing the text again: the cache is damaged") for message in said)
    assert name in " ".join(said)
    assert content(folder_of(cache)) == content(folder_of(whole)) and prepared.documents
    assert ask(cache)[0] == []


def test_what_a_kill_left_of_a_finished_preparation_is_removed(tmp_path, whole):
    cache = tmp_path / "cache"
    shutil.copytree(whole, cache)
    (left := folder_of(cache).with_suffix(".partial") / "setup").mkdir(parents=True)
    (left / "meta.json").touch()
    assert ask(cache)[0] == []
    assert not left.parent.exists()


def test_a_preparation_whose_result_was_removed_starts_anew(tmp_path, whole, half):
    cache = tmp_path / "cache"
    shutil.copytree(half, cache)
    shutil.rmtree(folder_of(cache) / "final")
    ask(cache)
    assert content(folder_of(cache)) == content(folder_of(whole))


def test_a_copied_cache_is_good_and_its_large_files_are_read_once(tmp_path, whole, monkeypatch):
    cache = tmp_path / "cache"
    shutil.copytree(whole, cache, copy_function=shutil.copyfile)
    monkeypatch.setattr(cache_module, "ALWAYS_READ", 0)
    assert ask(cache)[0] == []
    monkeypatch.setattr(cache_module, "_sha256", lambda path: pytest.fail("read again"))
    assert ask(cache)[0] == []


def test_two_processes_that_ask_at_once_prepare_once_and_the_other_says_that_it_waits(tmp_path, whole):
    processes = [child(tmp_path, slow=0.003, name=name) for name in ("a", "b")]
    for process in processes:
        process.join(60)
    told = sorted((tmp_path / name).read_text().splitlines() for name in ("a", "b"))
    assert told[1] == ["waiting for another process that prepares the same text"]
    assert "tokenizing" in told[0]
    assert content(folder_of(tmp_path)) == content(folder_of(whole))


def test_a_full_disk_is_told_and_the_next_preparation_continues(tmp_path, whole, monkeypatch):
    calls = itertools.count()
    append = Appended.append

    def full(self, name, content):
        if next(calls) == 40:
            self._files[name].write(content[: len(content) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        append(self, name, content)

    monkeypatch.setattr(Appended, "append", full)
    with pytest.raises(OSError, match="No space left on device"):
        ask(tmp_path)
    assert [path.suffix for path in tmp_path.iterdir() if path.is_dir()] == [".partial"]
    said, _ = ask(tmp_path)
    assert "training the tokenizer" not in said
    assert content(folder_of(tmp_path)) == content(folder_of(whole))


def test_a_sealed_folder_names_the_file_that_was_changed(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"1234")
    seal(tmp_path, {"dtype": "uint16"})
    assert unseal(tmp_path) == {"dtype": "uint16"}
    (tmp_path / "a.bin").write_bytes(b"1235")
    with pytest.raises(Damaged, match=r"a\.bin was cut off or edited"):
        unseal(tmp_path)


def test_a_process_forked_after_a_preparation_neither_hangs_nor_warns(tmp_path):
    code = """
import os, sys
from goldfish.data.corpus import Factbook
from goldfish.data.injection import Injection
from goldfish.data.packing import prepare
from goldfish.data.tokenizer import TrainedBPE
from pathlib import Path
prepared = prepare(Factbook(2000), TrainedBPE(300), Injection(1, 1), 0.1, Path(sys.argv[1]))
child = os.fork()
if not child:
    os._exit(7 if prepared.tokenizer(["the text"] * 99)["input_ids"] and int(prepared.background.sum()) else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    environment = {name: value for name, value in os.environ.items() if name != "TOKENIZERS_PARALLELISM"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], env=environment, capture_output=True, text=True, timeout=30
    )
    assert done.stdout == "7\n" and "tokenizers" not in done.stderr


if __name__ == "child":
    TOLD.write_text("\n".join(ask(CACHE, Generated(DIE_AT, SLOW))[0]))  # noqa: F821
