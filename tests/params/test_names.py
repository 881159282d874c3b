"""The names of a params file are those of the tables that they repeat."""

from danceflow.fields import COUPLINGS, LOGIT_NORMAL, OBJECTIVES, QUERIES, REDUCTIONS
from danceflow.method import DYNAMICS, METHODS
from danceflow.params import names
from danceflow.params.sections import DistillParams
from danceflow.train.distill.router import PER_UPDATE


def test_names_are_those_of_the_tables_they_repeat() -> None:
    assert set(names.METHOD_NAMES) == set(METHODS)
    assert set(names.QUERY_NAMES) == {*QUERIES, LOGIT_NORMAL}
    assert set(names.OBJECTIVE_NAMES) == set(OBJECTIVES)
    assert set(names.REDUCTION_NAMES) == set(REDUCTIONS)
    assert set(names.DYNAMICS_NAMES) == set(DYNAMICS)
    assert set(names.COUPLING_NAMES) == set(COUPLINGS)
    per_update = DistillParams.model_fields["capabilities_per_update"].annotation
    assert set(per_update.__args__) == set(PER_UPDATE)
