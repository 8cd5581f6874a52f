from importlib.util import find_spec

import pytest
import torch

from lightning_recall.benchmarks import side_by_side_text
from lightning_recall.benchmarks.side_by_side_measure import gradient_error
from lightning_recall.benchmarks.side_by_side_text import TextTask, draw_pairs

pytest.importorskip("transformers")  # not needed by the package

OURS = ["chunked_forward", "chunked_forward, all kept", "chunked_forward, whole batch"]


def check_gradients(task, steps):
    rows = [row for row in task.rows() if row.step in steps]
    assert [row.step for row in rows] == steps
    for row in rows:
        assert gradient_error(task, row) < 1e-12
        assert gradient_error(task, row, dropout=0.1) < 1e-12


def test_gradients_are_those_of_one_graph():
    check_gradients(TextTask(8, 4), OURS)


def test_sentence_transformers():
    pytest.importorskip("sentence_transformers")  # not needed by the package
    check_gradients(TextTask(8, 4), ["sentence-transformers, cached", "sentence-transformers, whole batch"])


def test_grad_cache():
    pytest.importorskip("grad_cache")  # not needed by the package
    check_gradients(TextTask(8, 4), ["GradCache"])


def test_absent_packages_are_named(monkeypatch):
    def find(name):
        return None if name in ("sentence_transformers", "grad_cache") else find_spec(name)

    monkeypatch.setattr(side_by_side_text, "find_spec", find)
    task = TextTask(8, 4)
    assert [row.step for row in task.rows()] == OURS
    assert task.absent()["sentence-transformers"] == "pip install sentence-transformers"
    assert "--grad-cache DIR" in task.absent()["GradCache"]
    monkeypatch.setattr(side_by_side_text, "find_spec", lambda _: None)
    assert task.rows() == []
    assert task.absent() == {"all text rows": "pip install transformers"}


def test_a_folder_without_a_clone_is_refused(tmp_path):
    with pytest.raises(ValueError, match="give the folder of a clone of GradCache"):
        TextTask(8, 4, str(tmp_path)).absent()


def test_questions_and_answers_share_topics_in_two_languages():
    questions, answers = (
        [set((row[mask.bool()] - 1).tolist()) for row, mask in zip(*texts.values(), strict=True)]
        for texts in draw_pairs(200, 0)
    )
    lengths = draw_pairs(200, 0)[0]["attention_mask"].sum(1)
    assert (lengths.min(), lengths.max()) == (8, 32)
    assert all(max(question) < 500 <= min(answer) for question, answer in zip(questions, answers, strict=True))
    shared = [len(q & {word - 500 for word in a}) for q, a in zip(questions, answers, strict=True)]
    others = [len(q & {word - 500 for word in a}) for q, a in zip(questions, answers[1:], strict=False)]
    assert sum(shared) > 5 * sum(others)


def test_score_counts_the_right_answers(monkeypatch):
    task = TextTask(8, 4)
    assert task.score(task.build().eval()) < 0.05  # of 1,000 answers

    class Topics(torch.nn.Module):
        def forward(self, texts):
            words = (texts["input_ids"] - 1).clamp(min=0) % 500
            counts = torch.nn.functional.one_hot(words, 500) * texts["attention_mask"][:, :, None]
            return torch.nn.functional.normalize(counts.sum(1).float() ** 2, dim=1)

    monkeypatch.setattr(side_by_side_text, "TEST_PAIRS", 100)
    assert task.score(Topics()) > 0.5
