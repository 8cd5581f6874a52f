from types import SimpleNamespace

import pytest

from lightning_recall.callbacks.after_evaluation import AfterEvaluation


class Shown(AfterEvaluation):
    attribute = "result"

    def show(self, trainer, pl_module, split):
        self.shown = [*getattr(self, "shown", []), (split, pl_module.result)]


@pytest.mark.parametrize(("fn", "expected"), [("fit", []), ("validate", [("val", 3)])])
def test_validations_are_shown_outside_of_trainings(fn, expected):
    callback = Shown()
    callback.on_validation_end(SimpleNamespace(state=SimpleNamespace(fn=fn)), SimpleNamespace(result=3))
    assert getattr(callback, "shown", []) == expected


def test_trainings_end_with_their_last_validation_and_tests_with_their_result():
    callback = Shown(class_names=["a", "b"])
    callback.on_fit_end(None, SimpleNamespace(result=1))
    callback.on_fit_end(None, SimpleNamespace(result={}))  # there was none
    callback.on_fit_end(None, SimpleNamespace())
    callback.on_test_end(None, SimpleNamespace(result=2))
    assert callback.shown == [("val", 1), ("test", 2)]
    assert callback.class_names == ["a", "b"]
