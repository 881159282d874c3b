"""What ties the sections of a params file together, and a params file to its surroundings."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from danceflow.capability import MERGE
from danceflow.errors import ConfigError, unknown_name
from danceflow.params.names import BROUGHT, SCRATCH, SOURCE_NAMES, WORLD_BUCKETS
from danceflow.params.problems import Problem, message, missing
from danceflow.params.sections import (
    DataParams,
    DistillParams,
    EvaluateParams,
    NotifyParams,
    Params,
    RunParams,
    TeacherParams,
    TransformerParams,
)


def require_trained_here(params: Params, source: str) -> None:
    """Check that all teachers can be trained, before the weights that are there are removed.

    Args:
        params: the parameters.
        source: Name of their file, for messages.

    Raises:
        ConfigError: A teacher was brought along.
    """
    for name, teacher in params.teachers.items():
        if teacher.init == BROUGHT:
            raise ConfigError(
                f"{source}: teachers.{name}: was brought along (danceflow bring-teachers) and "
                "cannot be trained anew"
            )


def require_weights(params: Params, root: Path, source: str) -> None:
    """Check that the weights of further metrics are there, before hours of training.

    Args:
        params: the parameters.
        root: The checkout, where relative paths start.
        source: Name of their file, for messages.

    Raises:
        ConfigError: A path of ``evaluate.weights`` leads nowhere; the message lists all of them.
    """
    problems = [
        Problem(f"evaluate.weights.{name}", f"{root / path}: there is no such file or folder")
        for name, path in params.evaluate.weights
        if path is not None and not (root / path).exists()
    ]
    if problems:
        raise ConfigError(message(source, problems))


# A rule sees the sections that are right in themselves, by name.


def _rule_capabilities(sections: Mapping[str, Any]) -> Iterator[Problem]:
    for name, capability in sections.get("capabilities", {}).items():
        path = f"capabilities.{name}"
        if "teachers" in sections and capability.teacher not in sections["teachers"]:
            text = unknown_name("teacher", capability.teacher, sections["teachers"])
            yield Problem(f"{path}.teacher", text)
        if "data" in sections and capability.bucket not in sections["data"].buckets:
            text = unknown_name("bucket", capability.bucket, sections["data"].buckets)
            yield Problem(f"{path}.bucket", text)


def _rule_weights(sections: Mapping[str, Any]) -> Iterator[Problem]:
    capabilities = sections.get("capabilities", {})
    if capabilities and not any(capability.weight > 0 for capability in capabilities.values()):
        yield Problem("capabilities", "at least one needs a weight above 0")


def _rule_teachers(sections: Mapping[str, Any]) -> Iterator[Problem]:
    teachers: Mapping[str, TeacherParams] = sections.get("teachers", {})
    for name, teacher in teachers.items():
        path = f"teachers.{name}"
        if "data" in sections and teacher.bucket not in sections["data"].buckets:
            text = unknown_name("bucket", teacher.bucket, sections["data"].buckets)
            yield Problem(f"{path}.bucket", text)
        seen = [name]
        while seen[-1] in teachers:
            init = teachers[seen[-1]].init
            if init in seen:
                yield Problem(f"{path}.init", f"starts from itself: {' < '.join([*seen, init])}")
                break
            seen.append(init)
        if name in (words := {MERGE, SCRATCH, BROUGHT}):
            text = f"no teacher can be called {name!r}: {', '.join(sorted(words))} are starts"
            yield Problem(path, text)
        if teacher.init not in (known := {SCRATCH, BROUGHT, *teachers}):
            text = unknown_name("teacher", teacher.init, known)
            yield Problem(f"{path}.init", text)


def _rule_adapters(sections: Mapping[str, Any]) -> Iterator[Problem]:
    """All adapters stand on one network, which is in memory once."""
    teachers: Mapping[str, TeacherParams] = sections.get("teachers", {})
    bases = {name: t.init for name, t in teachers.items() if t.adapter_rank is not None}
    for name, base in bases.items():
        if base in {SCRATCH, BROUGHT} or base in bases:
            text = f"an adapter stands on a teacher with weights of its own, not on {base!r}"
            yield Problem(f"teachers.{name}.init", text)
        elif base != next(iter(bases.values())):
            text = f"all adapters stand on one teacher, here {base!r} and others"
            yield Problem(f"teachers.{name}.init", text)


def _rule_distill(sections: Mapping[str, Any]) -> Iterator[Problem]:
    distill: DistillParams | None = sections.get("distill")
    if distill is None:
        return
    if isinstance(distill.num_queries, int) and distill.num_queries > distill.num_steps:
        text = f"{distill.num_queries} queries do not fit into num_steps = {distill.num_steps}"
        yield Problem("distill.num_queries", text)
    for key in ("substeps", "noised") if "capabilities" in sections else ():
        for name in getattr(distill, key):
            if name not in sections["capabilities"]:
                text = unknown_name("capability", name, sections["capabilities"])
                yield Problem(f"distill.{key}.{name}", text)
    if "teachers" not in sections:
        return
    starts = {MERGE, *sections["teachers"]}
    if distill.init not in starts:
        yield Problem("distill.init", unknown_name("start", distill.init, starts))
    for name in distill.merge_weights or {}:
        if name not in sections["teachers"]:
            text = unknown_name("teacher", name, sections["teachers"])
            yield Problem(f"distill.merge_weights.{name}", text)
    if distill.merge_weights is not None and sum(distill.merge_weights.values()) == 0:
        yield Problem("distill.merge_weights", "at least one weight should be above 0")


def _rule_steps(sections: Mapping[str, Any]) -> Iterator[Problem]:
    """Check that steps by capability name every capability."""
    evaluate: EvaluateParams | None = sections.get("evaluate")
    if evaluate is None or isinstance(evaluate.num_steps, int) or "capabilities" not in sections:
        return
    given, known = evaluate.num_steps, sections["capabilities"]
    for name in given:
        if name not in known:
            path = f"evaluate.num_steps.{name}"
            yield Problem(path, unknown_name("capability", name, known))
    for name in known:
        if name not in given:
            place = f"evaluate.num_steps.{name}"
            yield Problem(place, missing(place, "is missing, and every capability needs one"))


def _rule_processes(sections: Mapping[str, Any]) -> Iterator[Problem]:
    run: RunParams | None = sections.get("run")
    if run is not None and run.num_processes > 1 and run.device not in {"cpu", "cuda"}:
        text = f"{run.num_processes} processes need run.device cpu or cuda, not {run.device!r}"
        yield Problem("run.num_processes", text)


def _rule_base(sections: Mapping[str, Any]) -> Iterator[Problem]:
    """Only a network that stays as it is can be held in fewer bits."""
    run: RunParams | None = sections.get("run")
    distill: DistillParams | None = sections.get("distill")
    if run is None or run.base == "float":
        return
    if distill is not None and distill.student == "full":
        text = (
            f"{run.base} weights cannot be trained, and distill.student: full trains all of them; "
            "say distill.student: lora, or run.base: float"
        )
        yield Problem("run.base", text)
    if run.device == "mps":
        text = f"{run.base} is had on cpu and cuda, not on mps; say run.base: float"
        yield Problem("run.base", text)


def _rule_gate(sections: Mapping[str, Any]) -> Iterator[Problem]:
    if "gate" not in sections or "capabilities" not in sections:
        return
    given, known = sections["gate"].min_retention, sections["capabilities"]
    for section, names in (("min_score", sections["gate"].min_score), ("min_retention", given)):
        for name in names:
            if name not in known:
                yield Problem(f"gate.{section}.{name}", unknown_name("capability", name, known))
    for name in known:
        if name not in given:
            place = f"gate.min_retention.{name}"
            yield Problem(place, missing(place, "is missing, and every capability needs one"))


def _rule_sizes(sections: Mapping[str, Any]) -> Iterator[Problem]:
    if "family" not in sections:
        return
    network: TransformerParams = sections["family"].transformer
    if network.sample_size % network.patch_size:
        text = f"{network.patch_size} does not divide sample_size = {network.sample_size}"
        yield Problem("family.transformer.patch_size", text)


def _rule_world(sections: Mapping[str, Any]) -> Iterator[Problem]:
    if "data" not in sections:
        return
    data: DataParams = sections["data"]
    buckets = WORLD_BUCKETS[data.world]
    for name in data.buckets:
        if buckets is not None and name not in buckets:
            text = unknown_name(f"bucket of the world {data.world!r}", name, buckets)
            yield Problem(f"data.buckets.{name}", text)


def _rule_input(sections: Mapping[str, Any]) -> Iterator[Problem]:
    data: DataParams | None = sections.get("data")
    if data is None:
        return
    if WORLD_BUCKETS[data.world] is not None:
        for name in ("source", "input"):
            if getattr(data, name) is not None:
                text = f"should be null: the rows of the world {data.world!r} are drawn, not read"
                yield Problem(f"data.{name}", text)
        return
    if data.source is None:
        yield Problem("data.source", f"is missing: {', '.join(SOURCE_NAMES)}")
    if data.input is None:
        yield Problem("data.input", f"is missing: where does the {data.source or 'data'} lie?")
        return
    for bucket in data.input.tasks:
        if bucket not in data.buckets:
            text = unknown_name("bucket", bucket, data.buckets)
            yield Problem(f"data.input.tasks.{bucket}", text)
    if "task" not in data.input.columns and len(data.buckets) > 1:
        text = "task: is missing; with several buckets a column must tell them apart"
        yield Problem("data.input.columns", text)
    if "task" in data.input.columns:
        for bucket in data.buckets:
            if not data.input.tasks.get(bucket):
                text = "is missing: which tasks belong to this bucket?"
                yield Problem(f"data.input.tasks.{bucket}", text)


def _rule_judge(sections: Mapping[str, Any]) -> Iterator[Problem]:
    evaluate: EvaluateParams | None = sections.get("evaluate")
    judge = None if evaluate is None else evaluate.judge
    if evaluate is None or judge is None or not judge.is_score:
        return
    if judge.num_samples < evaluate.num_samples:
        text = f"{judge.num_samples} rows are judged, retention needs all {evaluate.num_samples}"
        yield Problem("evaluate.judge.num_samples", text)
    if evaluate.further_steps:
        text = "a judge that gives the score would be paid for each of them; say []"
        yield Problem("evaluate.further_steps", text)


def _rule_notify(sections: Mapping[str, Any]) -> Iterator[Problem]:
    notify: NotifyParams | None = sections.get("notify")
    for index, hook in enumerate(notify.webhooks if notify else ()):
        num_secrets = (hook.secret_variable is not None) + (hook.secret_block is not None)
        if hook.auth == "none" and num_secrets:
            text = "is none, and a secret is named; say signature, bearer or both"
            yield Problem(f"notify.webhooks.{index}.auth", text)
        if hook.auth != "none" and num_secrets != 1:
            text = f"{hook.auth} needs either secret_variable or secret_block"
            yield Problem(f"notify.webhooks.{index}.auth", text)


RULES = (
    _rule_processes,
    _rule_capabilities,
    _rule_weights,
    _rule_teachers,
    _rule_adapters,
    _rule_distill,
    _rule_steps,
    _rule_base,
    _rule_gate,
    _rule_sizes,
    _rule_world,
    _rule_input,
    _rule_judge,
    _rule_notify,
)
