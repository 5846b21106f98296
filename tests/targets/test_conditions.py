"""What conditions mean: vectors from numbers and names, distances, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pdiff_hf.targets.conditions import ConditionError, Conditions

DIGITS = tuple("0123456789")
BITS = Conditions("bits", DIGITS, complement=True)
SHARES = Conditions("simplex", ("cat", "dog"))
ANGLE = Conditions("numbers", ("angle",))


@pytest.mark.parametrize("given", [["3", "7"], [0, 0, 0, 1, 0, 0, 0, 1, 0, 0], [["7", "3"], ["3", "7"]]])
def test_bits_are_given_by_their_numbers_or_by_names(given):
    vectors = BITS.vectors(given, 2)
    assert vectors.shape == (2, 10)
    assert vectors.dtype == torch.float32
    assert vectors.nonzero()[:, 1].tolist() == [3, 7, 3, 7]


@pytest.mark.parametrize("given", [[0.25, 0.75], (0.25, 0.75), np.array([0.25, 0.75]), torch.tensor([0.25, 0.75])])
@pytest.mark.parametrize("block", [False, True])
def test_lists_arrays_and_tensors_are_the_same_condition(given, block):
    given = [given, given, given] if block else given
    assert SHARES.vectors(given, 3).tolist() == [[0.25, 0.75]] * 3


@pytest.mark.parametrize(
    ("conditions", "given", "sentence"),
    [
        (BITS, ["3", "x"], "no 'x' among the names of a condition: '0', '1'"),
        (BITS, "37", "but the text '37' was given"),
        (BITS, [1, 0], r"a list of 10 numbers \(each 0 or 1.*, but 2 numbers were given"),
        (BITS, [0.5] * 10, "each 0 or 1"),
        (BITS, torch.ones(2, 2, 10), r"shape \(2, 2, 10\) was given"),
        (BITS, [], "but 0 numbers were given"),
        (SHARES, [0.5, 0.6], r"with sum 1\) for 'cat', 'dog', but \[0.5, 0.6\] was given"),
        (SHARES, [-1.0, 2.0], "at least 0"),
        (
            SHARES,
            [[0.5, 0.5], [0.5, 0.5]],
            "2 conditions were given for 3 networks; pass one for all, or one for each",
        ),
        (SHARES, [[0.5, 0.5], [1]], r"but \[\[0.5, 0.5\], \[1\]\] was given"),
        (SHARES, [[0.5, 0.5], [0.4, 0.6], [2, 0]], "was given in row 2"),
        (ANGLE, [float("nan")], "finite"),
        (ANGLE, ["angle"], r"but \['angle'\] was given"),
        (ANGLE, None, "finite"),
    ],
)
def test_what_is_no_condition_is_refused_in_a_sentence(conditions, given, sentence):
    with pytest.raises(ConditionError, match=sentence):
        conditions.vectors(given, 3)


def test_distances_are_to_the_nearest_known_condition():
    some, known = BITS.vectors(["3", "7"], 1), BITS.vectors([["3", "8"], ["0"]], 2)
    assert BITS.distances(some, known).tolist() == [2]
    assert BITS.distances(1 - some, known).tolist() == [2]  # of the complement, which is the same task
    assert Conditions("bits", DIGITS).distances(1 - some, known).tolist() == [7]
    near = SHARES.distances(torch.tensor([[0.5, 0.5]]), torch.tensor([[0.75, 0.25], [1, 0]]))
    assert near.tolist() == [0.25]
    angles = ANGLE.distances(torch.tensor([[25.0]]), torch.tensor([[10.0], [30.0]]))
    assert angles.tolist() == [0.5]


def test_a_condition_is_described_by_its_names():
    assert BITS.describe(BITS.vectors(["7", "3"], 1)[0]) == "{3, 7}"
    assert SHARES.describe([0.25, 0.75]) == "cat 0.25, dog 0.75"


@pytest.mark.parametrize("conditions", [BITS, SHARES, ANGLE])
def test_what_conditions_mean_survives_json(conditions):
    assert Conditions.from_dict(conditions.to_dict() | {"trained": []}) == conditions


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"kind": "colors", "names": ["a"]}, "of kind bits, simplex, numbers, but 'colors'"),
        ({"kind": "bits", "names": ["a", "a"]}, "different names"),
        ({"kind": "bits", "names": []}, "different names"),
        ({"kind": "bits", "names": [["a"]]}, "different names"),
        ({"kind": [], "names": ["a"]}, "of kind"),
        ({"kind": "simplex", "names": ["a"], "complement": True}, "true of bits alone"),
        ({"kind": "bits", "names": "ab"}, "stated by `kind` and a list `names`"),
        ([], "stated by `kind`"),
    ],
)
def test_a_damaged_statement_of_what_conditions_mean_is_refused(content, sentence):
    with pytest.raises(ConditionError, match=sentence):
        Conditions.from_dict(content)
