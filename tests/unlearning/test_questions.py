"""Questions: TOFU's files, the invented authors, and their rows of token ids."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from goldfish.data.tokenizer import TrainedBPE
from goldfish.unlearning.fictitious import FictitiousAuthors
from goldfish.unlearning.module import Batches, parts
from goldfish.unlearning.questions import TOFU, Encoder, Row, collate

PERTURBED = ["forget10_perturbed", "retain_perturbed", "real_authors_perturbed", "world_facts_perturbed"]


@pytest.fixture
def folder(tmp_path):
    def entry(name, number):
        return {
            "question": f"{name} {number}?",
            "answer": f"answer {number}",
            "paraphrased_answer": f"other words {number}",
            "perturbed_answer": [f"wrong {number} {w}" for w in range(5)],
        }

    for name, count in {"forget10": 2, "retain90": 5, **dict.fromkeys(PERTURBED, 2)}.items():
        rows = [entry(name, number) for number in range(count)]
        lines = "\n".join(map(json.dumps, rows)) if name.startswith("forget") else json.dumps(rows)
        (tmp_path / f"{name}.json").write_text(lines + "\n")
    return tmp_path


def test_tofu_s_files_are_read_as_json_or_an_object_a_line(folder):
    found = TOFU(folder=str(folder))()
    assert [question.question for question in found.forget] == ["forget10 0?", "forget10 1?"]
    assert len(found.retain) == 5 and found.known == []
    assert found.measured["world_facts"][1].wrong == tuple(f"wrong 1 {w}" for w in range(5))
    assert found.measured["forget"][0].paraphrased == "other words 0"
    assert "wrong 0 4" in found.texts()


def test_an_answer_that_is_missing_is_named_with_its_file_and_row(folder):
    (folder / "retain90.json").write_text('{"question": "a?", "answer": "b"}\n{"question": "c?"}\n')
    with pytest.raises(ValueError, match=r"retain90\.json, row 2: answer is None, must be text"):
        TOFU(folder=str(folder))()


def test_measured_questions_need_wrong_answers(folder):
    (folder / "retain_perturbed.json").write_text('{"question": "a?", "answer": "b"}')
    with pytest.raises(ValueError, match=r"retain_perturbed\.json, row 1: perturbed_answer.*missing"):
        TOFU(folder=str(folder))()


@pytest.mark.parametrize(
    ("text", "said"), [("", "holds no question"), ("{oops", "line 1: not JSON"), ("[3]", "must be an object")]
)
def test_a_file_that_holds_no_questions_is_named(folder, text, said):
    (folder / "forget10.json").write_text(text)
    with pytest.raises(ValueError, match=rf"forget10\.json.*{said}"):
        TOFU(folder=str(folder))()


def test_a_missing_file_a_missing_folder_and_an_unreachable_hub_are_told(folder):
    (folder / "retain90.json").unlink()
    with pytest.raises(ValueError, match=r"retain90\.json: cannot be read \(No such file"):
        TOFU(folder=str(folder))()
    with pytest.raises(ValueError, match=r"no such folder; give one with forget05\.json"):
        TOFU("forget05", str(folder / "nowhere"))
    with pytest.raises(ValueError, match=r"locuslab/TOFU forget10: cannot be read .* type questions\.folder=FOLDER"):
        TOFU()()  # HF_HUB_OFFLINE=1 in the tests


def test_what_is_to_be_forgotten_cannot_be_retained(folder):
    (folder / "retain90.json").write_text((folder / "forget10.json").read_text())
    with pytest.raises(ValueError, match=r"forget10 and retain90: 2 questions are in both, such as 'forget10 0\?'"):
        TOFU(folder=str(folder))()


@settings(max_examples=8, deadline=None)
@given(st.integers(2, 60), st.data())
def test_invented_authors_have_ten_questions_each_and_five_wrong_answers_that_are_wrong(authors, data):
    forget = data.draw(st.integers(1, authors - 1))
    seed = data.draw(st.integers(0, 5))
    found = FictitiousAuthors(authors, forget, seed=seed)()
    assert len(found.forget) == 10 * forget and len(found.retain) == 10 * (authors - forget)
    every = found.forget + found.retain
    assert not {q.question for q in found.forget} & {q.question for q in found.retain}
    assert len({q.question for q in every}) == len(every)
    for question in [*every, *found.known]:
        true = question.paraphrased or question.answer
        assert len({true, *question.wrong}) == 6 and question.paraphrased != question.answer
    assert (
        found == FictitiousAuthors(authors, forget, seed=seed)() != FictitiousAuthors(authors, forget, seed=seed + 1)()
    )


def test_facts_about_the_world_are_facts():
    measured = FictitiousAuthors(capitals=150)().measured
    said = {question.question: question.answer for question in measured["world_facts"] + measured["real_authors"]}
    assert said["What is the capital of France?"] == "The capital of France is Paris."
    assert said["Who wrote the Odyssey?"] == "The Odyssey was written by Homer."


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"authors": 5, "forget_authors": 5}, "forget_authors=5: must be from 1 to 4, less than authors=5"),
        ({"authors": 5, "forget_authors": 7}, "forget_authors=7: must be from 1 to 4"),
        ({"authors": 401}, "authors=401: must be from 2 to 400"),
        ({"capitals": 5}, "capitals=5: must be from 6"),
    ],
)
def test_a_forget_set_larger_than_the_data_is_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        FictitiousAuthors(**settings)


def test_a_row_is_the_separator_the_prompt_and_the_answer_with_its_end():
    questions = FictitiousAuthors(2, 1)()
    tokenizer = TrainedBPE(300).build(questions.texts())
    encoder = Encoder(tokenizer, "Q: {question}\nA:")
    (row,) = encoder.rows(questions.forget[:1])
    assert row.prompt[0] == encoder.separator and row.answer[-1] == encoder.end
    first = questions.forget[0]
    assert tokenizer.decode(row.prompt[1:] + row.answer[:-1]) == f"Q: {first.question}\nA: {first.answer}"
    (other,) = encoder.rows(questions.forget[:1], ["no idea"])
    assert other.prompt == row.prompt and tokenizer.decode(other.answer[:-1]) == " no idea"


def test_prompt_and_padding_are_no_targets():
    rows = collate([Row([7, 8], [9]), Row([7], [5, 6, 1])])
    assert rows.ids_BT.tolist() == [[7, 8, 9, 0], [7, 5, 6, 1]]
    assert rows.keep_BT.tolist() == [[False, False, True, False], [False, True, True, True]]
    assert (rows.tokens, rows.examples) == (4, 2)


@given(st.integers(1, 9), st.integers(1, 4), st.integers(1, 3), st.integers(1, 5))
def test_an_epoch_passes_once_over_what_is_to_be_forgotten_beside_as_much_to_retain(lead, batch, epochs, micro):
    forget, retain = ([Row([who, i], [1]) for i in range(count)] for who, count in ((1, lead), (2, 4)))
    batches = Batches(("forget", "retain", "idk"), forget, retain, [[30], [31]], batch, epochs, seed=3)
    seen = []
    for step in range(batches.steps):
        found = batches(step)
        assert found == batches(step), "a function of the step"
        seen += [row.prompt[1] for row in found["forget"]]
        assert {row.prompt[0] for row in found["retain"]} == {2}
        assert [row.prompt for row in found["idk"]] == [row.prompt for row in found["forget"]]
        assert {row.answer[0] for row in found["idk"]} <= {30, 31}
        split = parts(found, micro)
        assert len({len(rows) for rows in found.values()}) == 1
        assert torch.cat([part["forget"].ids_BT for part in split]).tolist() == [
            [*r.prompt, *r.answer] for r in found["forget"]
        ]
        assert {part["retain"].examples for part in split} == {len(found["retain"])}
    assert sorted(seen) == sorted(list(range(lead)) * epochs)
