from types import SimpleNamespace

import pytest

from lightning_recall.callbacks.class_names import check_same_names, checked_names, find_class_names, key_names


def test_key_names_are_distinct_and_have_no_separators():
    names = ["traffic light", "car", " car ", "car_2", "bus/tram", "", "a\\b", "4", ""]
    keys = key_names(names)
    assert len(set(keys)) == len(names)
    assert not any(set(key) & set(" /\\") or not key for key in keys)
    assert keys[:3] == ("traffic_light", "car", "car_2")
    assert key_names(["sky", "straße"]) == ("sky", "straße")


def test_the_number_of_names_is_checked():
    assert checked_names(None, 3) is None
    assert checked_names(["a", "b"], 2) == ("a", "b")
    with pytest.raises(ValueError, match="each of the 3 classes, got 2 names"):
        checked_names(["a", "b"], 3)
    with pytest.raises(ValueError, match="each of the 3 classes"):
        checked_names("abc", 3)  # a string is not three names


def test_the_first_owner_with_names_counts():
    named, other, unnamed = SimpleNamespace(class_names=("a", "b")), SimpleNamespace(class_names=("x", "y")), object()
    assert find_class_names((other, named), 2) == ("x", "y")
    assert find_class_names((unnamed, None, SimpleNamespace(class_names=None), named), 2) == ("a", "b")
    assert find_class_names((unnamed, None), 3) == ("0", "1", "2")
    with pytest.raises(ValueError, match="each of the 3 classes, got 2 names"):
        find_class_names((unnamed, named), 3)


def test_classes_in_another_order_raise_and_other_classes_warn():
    check_same_names(("cup", "pen"), ("cup", "pen"))
    check_same_names(("cup", "pen"), None)
    check_same_names(("0", "1"), ("cup", "pen"))
    check_same_names(("cup", "pen"), ("Tasse", "Stift"), are_chosen=True)
    for are_chosen in (False, True):
        with pytest.raises(ValueError, match="another order: class 1 is 'mug' for the network, but 'pen' in the data"):
            check_same_names(("cup", "mug", "pen"), ("cup", "pen", "mug"), are_chosen)
    with pytest.warns(UserWarning, match="other classes .* class 1 is 'mug' for the network, but 'bus' in the data"):
        check_same_names(("cup", "mug"), ("cup", "bus"))
