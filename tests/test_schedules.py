"""Schedules: which layers, what keep; from Python and from a dict."""

import pytest

from vtskip.errors import ConfigError
from vtskip.methods import get_method
from vtskip.schedules import Constant, Interleaved, Listed


def test_constant_interleaved_and_list():
    assert Constant().resolve(3, 0.5) == [0.5] * 3
    assert Constant(first=1, stop=3, keep=0.1).resolve(4, 0.5) == [None, 0.1, 0.1, None]
    assert Constant(first=-3, stop=-1).resolve(5, 0.5) == [None, None, 0.5, 0.5, None]
    assert Constant(first=-17, stop=-1).resolve(3, 0.5) == [0.5, 0.5, None]
    assert Interleaved().resolve(5, 0.2) == [None, 0.2, None, 0.2, None]
    assert Listed(layers=[2, 0], keep=[0.1, 0.9]).resolve(3, 0.5) == [0.9, None, 0.1]
    assert Listed(layers=[]).resolve(2, 0.5) == [None, None]


def test_the_same_object_from_python_and_dict():
    assert get_method({"name": "mod", "schedule": {"kind": "interleaved", "first": 0}}).schedule == Interleaved(first=0)


@pytest.mark.parametrize("keep", [0, 0.0, 1.5, -0.1, float("nan")])
def test_keep_outside_its_range_is_refused(keep):
    with pytest.raises(ConfigError, match="keep"):
        get_method({"name": "mod", "keep": keep})


def test_layers_the_model_does_not_have_are_named():
    with pytest.raises(ConfigError, match=r"\[9\].*layers 0 to 3"):
        Listed(layers=[1, 9]).resolve(4, 0.5)


def test_one_keep_per_listed_layer():
    with pytest.raises(ConfigError, match="2 layers but 1 values"):
        Listed(layers=[0, 1], keep=[0.5]).resolve(4, 0.5)
