"""A stage's name says its kind and its round, and is put together and taken apart alike."""

import pytest

from divsel_ray.stage_names import is_control, kind_of, round_name, round_of


@pytest.mark.parametrize(
    ("number", "name"), [(0, "round-0/score"), (2, "round-2/score"), (12, "round-12/score"), (None, "static/score")]
)
def test_a_name_gives_back_the_round_and_the_kind_that_it_was_made_of(number, name):
    assert round_name(number, "score") == name
    assert (round_of(name), kind_of(name)) == (number, "score")


def test_a_stage_before_the_rounds_is_its_kind_and_of_no_round():
    assert (kind_of("pool"), round_of("pool"), is_control("pool")) == ("pool", None, False)


def test_the_static_control_is_of_no_round():
    assert is_control("static/train")
    assert not is_control("round-1/train")
