import pytest
import torch

from danceflow.fields import AverageField, Condition, CountingField, GuidedField


def label(values):
    return Condition({"label": torch.tensor(values, dtype=torch.float32)[:, None]})


def label_field(z, sigma, condition):
    """A field that shows which row of which condition it was given."""
    return z * 0 + condition.tensors["label"].reshape(-1, 1, 1, 1) + sigma.reshape(-1, 1, 1, 1)


Z = torch.zeros(3, 1, 2, 2)
SIGMA = torch.tensor([0.1, 0.2, 0.3])


def test_condition_knows_its_batch_size():
    assert label([1, 2, 3]).num_samples == 3


@pytest.mark.parametrize(
    "tensors", [{}, {"a": torch.zeros(2, 1), "b": torch.zeros(3, 1)}, {"a": torch.tensor(1.0)}]
)
def test_condition_without_one_batch_size_is_refused(tensors):
    with pytest.raises(ValueError, match="one batch size"):
        Condition(tensors)


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        (torch.tensor([2, 0]), [3, 1]),
        (torch.tensor([True, False, True]), [1, 3]),
        (slice(2), [1, 2]),
    ],
)
def test_condition_select_takes_rows(index, expected):
    assert label([1, 2, 3]).select(index).tensors["label"].flatten().tolist() == expected


def test_condition_repeat_and_cat_order_rows():
    assert label([1, 2]).repeat(2).tensors["label"].flatten().tolist() == [1, 1, 2, 2]
    joined = Condition.cat([label([1]), label([5, 6])])
    assert joined.tensors["label"].flatten().tolist() == [1, 5, 6]
    assert joined.to("cpu").num_samples == 3


def test_condition_cat_of_different_tensors_is_refused():
    with pytest.raises(ValueError, match="cannot be joined"):
        Condition.cat([label([1]), Condition({"other": torch.zeros(1, 1)})])


def test_guided_field_is_the_formula_in_one_batched_call():
    counting = CountingField(label_field)
    guided = GuidedField(counting, null=lambda c: label([0.0] * c.num_samples), scale=3.0)
    velocity = guided(Z, SIGMA, label([1, 2, 3]))
    expected = 3.0 * torch.tensor([1.0, 2.0, 3.0]) + SIGMA
    assert torch.allclose(velocity[:, 0, 0, 0], expected)
    assert (counting.num_calls, counting.num_evaluations) == (1, 6)


def test_guidance_of_one_is_a_plain_call():
    counting = CountingField(label_field)
    guided = GuidedField(counting, null=lambda c: label([0.0] * c.num_samples), scale=1.0)
    assert torch.equal(guided(Z, SIGMA, label([1, 2, 3])), label_field(Z, SIGMA, label([1, 2, 3])))
    assert (counting.num_calls, counting.num_evaluations) == (1, 3)


def test_average_field_is_the_mean():
    fields = [lambda z, s, c: torch.full_like(z, 1.0), lambda z, s, c: torch.full_like(z, 5.0)]
    average = AverageField(fields)
    assert torch.allclose(average(Z, SIGMA, label([1, 2, 3])), torch.full_like(Z, 3.0))


def test_average_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no field to average"):
        AverageField([])
