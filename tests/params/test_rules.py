"""What ties sections together is told with its place, as what is wrong in one of them."""

import copy
from typing import Any

import pytest
from params_files import changed, refusal

from danceflow.params.read import parse_params


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        (
            "capabilities.t2i.teacher=bse",
            "capabilities.t2i.teacher: unknown teacher 'bse': did you mean 'base'?",
        ),
        (
            "capabilities.t2i.bucket=t2",
            "capabilities.t2i.bucket: unknown bucket 't2': did you mean 't2i'?",
        ),
        ("teachers.local.bucket=nowhere", "teachers.local.bucket: unknown bucket 'nowhere'"),
        ("teachers.local.init=bas", "teachers.local.init: unknown teacher 'bas': did you mean"),
        ("teachers.base.init=base", "teachers.base.init: starts from itself: base < base"),
        ("teachers.base.adapter_rank=4", "teachers.base.init: an adapter stands on a teacher with"),
        ("distill.init=merg", "distill.init: unknown start 'merg': did you mean 'merge'?"),
        (
            "distill.merge_weights={bass: 1}",
            "distill.merge_weights.bass: unknown teacher 'bass': did you mean 'base'?",
        ),
        ("distill.merge_weights={base: 0}", "distill.merge_weights: at least one weight"),
        (
            "distill.num_queries=17",
            "distill.num_queries: 17 queries do not fit into num_steps = 4",
        ),
        (
            "distill.noised={t2: 0.5}",
            "distill.noised.t2: unknown capability 't2': did you mean 't2i'?",
        ),
        (
            "distill.substeps={t2: 2}",
            "distill.substeps.t2: unknown capability 't2': did you mean 't2i'?",
        ),
        ("evaluate.num_steps={t2i: 16}", "evaluate.num_steps.local_edit: is missing"),
        (
            "evaluate.num_steps={t2i: 16, local_edit: 4, global_edit: 4, global: 4}",
            "evaluate.num_steps.global: unknown capability 'global'",
        ),
        ("evaluate.num_steps={t2i: 0}", "evaluate.num_steps: should be a number from 1, or one"),
        (
            "run.base=nf4",
            "run.base: nf4 weights cannot be trained, and distill.student: full trains all",
        ),
        (
            "gate.min_retention={t2i: 1}",
            "local_edit: is missing, and every capability needs one: add `local_edit: 0.9`",
        ),
        (
            "gate.min_retention={t2i: 1, local_edit: 1, global_edt: 1}",
            "gate.min_retention.global_edt: unknown capability 'global_edt'",
        ),
        ("family.transformer.patch_size=5", "patch_size: 5 does not divide sample_size = 32"),
    ],
)
def test_sections_that_do_not_fit_are_told_with_the_place(
    data: dict[str, Any], assignment: str, message: str
) -> None:
    text = refusal(changed(data, assignment))
    assert text.startswith("params.yaml: ")
    assert message in text


HOOK = "{url: 'https://h.example/x', secret_variable: %s, secret_block: %s, auth: %s}"


@pytest.mark.parametrize(
    ("variable", "block", "auth", "said"),
    [
        ("null", "null", "none", ""),
        ("SECRET", "null", "both", ""),
        ("null", "hook", "signature", ""),
        ("SECRET", "null", "none", "is none, and a secret is named"),
        ("null", "null", "bearer", "bearer needs either secret_variable or secret_block"),
        ("SECRET", "hook", "bearer", "bearer needs either secret_variable or secret_block"),
    ],
)
def test_an_address_with_a_proof_has_one_secret(
    data: dict[str, Any], variable: str, block: str, auth: str, said: str
) -> None:
    given = changed(data, f"notify.webhooks=[{HOOK % (variable, block, auth)}]")
    if said:
        assert f"notify.webhooks.0.auth: {said}" in refusal(given)
    else:
        assert parse_params(given, "params.yaml").notify.webhooks[0].auth == auth


@pytest.mark.parametrize(
    "url",
    [
        "ftp://h.example/",
        "https://",
        "https://user:pw@h.example/",
        "https://h.example/?key=pw",
        "7",
    ],
)
def test_an_address_shows_no_secret_and_is_one(data: dict[str, Any], url: str) -> None:
    hook = f"{{url: '{url}', secret_variable: null, secret_block: null, auth: none}}"
    said = refusal(changed(data, f"notify.webhooks=[{hook}]"))
    assert "url: should be http:// or https://, host and path, without user" in said
    assert "pw" not in said


def test_a_block_is_named_with_its_type(data: dict[str, Any]) -> None:
    said = refusal(changed(data, "notify.blocks=[team]"))
    assert "notify.blocks.0: should be type/name of a Prefect block, such as slack-web" in said
    parse_params(changed(data, "notify.blocks=[slack-webhook/team]"), "params.yaml")


def test_teachers_that_start_from_each_other_are_refused(data: dict[str, Any]) -> None:
    text = refusal(changed(data, "teachers.local.init=global", "teachers.global.init=local"))
    assert "teachers.local.init: starts from itself: local < global < local" in text


def test_adapters_stand_on_one_teacher_of_its_own_weights(data: dict[str, Any]) -> None:
    one = changed(data, "teachers.local.adapter_rank=4", "teachers.global.adapter_rank=4")
    assert parse_params(one, "params.yaml").teachers["local"].adapter_rank == 4
    stacked = refusal(changed(one, "teachers.global.init=local"))
    assert "teachers.global.init: an adapter stands on a teacher with weights of its own" in stacked
    one["teachers"]["other"] = one["teachers"]["base"]
    text = refusal(changed(one, "teachers.global.init=other"))
    assert "teachers.global.init: all adapters stand on one teacher, here 'other'" in text


def test_scenes_know_their_buckets(data: dict[str, Any]) -> None:
    other = copy.deepcopy(data)
    other["data"]["buckets"]["t3i"] = other["data"]["buckets"]["t2i"]
    assert (
        "data.buckets.t3i: unknown bucket of the world 'scenes' 't3i': did you mean 't2i'"
        in refusal(other)
    )
