"""Classes are the same by their names, whatever the order and the spelling."""

from __future__ import annotations

import pytest

from pdiff_hf.data.class_names import are_numbers, match_names

MANY = [f"class {chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(200)]


@pytest.mark.parametrize(
    ("names", "others", "places"),
    [
        (["cat", "dog"], ["dog", "cat"], [1, 0]),
        (["Polar_Bear", "sea-lion"], ["sea lion", "fox", "polar bear"], [2, 0]),
        (["a", "A"], ["A", "b", "a"], [2, 0]),  # letters of both cases, as in EMNIST
        (["a", "A"], ["a", "b"], None),
        (["cat", "horse"], ["cat", "dog"], None),
        (["cat", "dog"], ["cat"], None),
        ([*MANY, "crane", "crane"], [*MANY, "crane", "crane"], list(range(202))),
        ([*MANY, "crane", "crane2"], [*MANY, "crane", "crane"], list(range(202))),
        ([*MANY[:100], "crane", "crane"], ["crane", *MANY[:100], "crane"], None),
        (["0", "1"], ["LABEL_0", "LABEL_1"], None),
    ],
)
def test_names_are_found_in_another_list(names, others, places):
    assert match_names(names, others) == places


def test_numbers_are_no_names():
    assert are_numbers(["0", "1", "2"])
    assert are_numbers(["LABEL_0", "LABEL_1"])
    assert not are_numbers(["1", "0"])
    assert not are_numbers(["0", "dog"])
