"""The table of families and its errors."""

import pytest

from danceflow.errors import WeightsError
from danceflow.models.families.sd3 import Sd3Family
from danceflow.models.family import FAMILIES, family_class, open_family
from danceflow.params.names import FAMILY_NAMES


def test_a_name_gives_the_class_that_bears_it() -> None:
    assert family_class("sd3") is Sd3Family
    for name in FAMILIES:
        assert family_class(name).name == name


def test_the_parameters_know_the_same_families() -> None:
    assert set(FAMILY_NAMES) == set(FAMILIES)


def test_an_unknown_name_is_told_with_the_nearest(tmp_path) -> None:
    with pytest.raises(WeightsError, match="unknown model family 'sd-3': did you mean 'sd3'"):
        open_family("sd-3", tmp_path)
