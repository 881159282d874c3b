"""What a student's manifest recommends: one number, or one for each kind of answer."""

import pytest
from tiny_project import small_params

from danceflow.models.steps import recommended_steps, steps_of


@pytest.mark.parametrize(
    ("num_steps", "told", "generate", "edit"),
    [
        (16, 16, 16, 16),
        ({"t2i": 16, "local_edit": 2, "global_edit": 4}, {"generate": 16, "edit": 4}, 16, 4),
    ],
)
def test_an_edit_takes_the_most_steps_of_the_capabilities_with_a_source(
    num_steps, told, generate, edit
) -> None:
    params = small_params(("t2i", "local_edit", "global_edit"), evaluate__num_steps=num_steps)
    meta = {"num_steps": recommended_steps(params)}
    assert meta["num_steps"] == told
    assert (steps_of(meta, is_edit=False), steps_of(meta, is_edit=True)) == (generate, edit)


def test_a_kind_that_no_capability_is_of_takes_the_most_of_all() -> None:
    params = small_params(("local_edit",), evaluate__num_steps={"local_edit": 3})
    assert recommended_steps(params) == {"generate": 3, "edit": 3}
