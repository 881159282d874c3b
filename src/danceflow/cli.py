"""The ``danceflow`` command. It imports what a command needs when that command is called."""

import logging
import os
import signal
import sys
import textwrap
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from danceflow.errors import DanceflowError, DataError, UsageError
from danceflow.ops import runtime

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL.Image import Image

    from danceflow.ops.tracking import TrackingSettings
    from danceflow.registry.student import Student

_LOG = logging.getLogger(__name__)

app = typer.Typer(
    name="danceflow",
    help="One student from several flow-matching teachers, by on-policy distillation.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

_STUDIO_PORT = 7860  # where the field's pages are

Source = Annotated[
    str,
    typer.Option(
        "--from",
        help="A folder, champion, challenger, previous, runs:/<run id> or models:/<name>@<alias>.",
    ),
]


team_app = typer.Typer(
    name="team",
    help="Start and end a team's servers on this machine.",
    no_args_is_help=True,
)
app.add_typer(team_app)


class Origin(StrEnum):
    """Where results are read from."""

    DVC = "dvc"
    MLFLOW = "mlflow"


Device = Annotated[str, typer.Option(help="Where to compute, such as cuda.")]
Seed = Annotated[int, typer.Option(help="Seed of the noise.")]
NumSteps = Annotated[
    int | None, typer.Option(min=1, help="Euler steps; default: what the student was made for.")
]
Reason = Annotated[str, typer.Option(help="Why; it is kept in the history.")]
Guidance = Annotated[
    float, typer.Option(min=0.0, help="Extra guidance; the student has its teachers' in it.")
]


def _parameters() -> list[str]:
    """Return the names that a shell offers."""
    from danceflow.params.meaning import parameter_names

    return list(parameter_names())


@app.callback()
def _start(
    verbose: Annotated[bool, typer.Option("--verbose", help="Show debug messages.")] = False,
) -> None:
    runtime.start(verbose)


@app.command()
def run(
    recipe: Annotated[
        Path | None, typer.Option(help="A complete params file to use instead of params.yaml.")
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", "-S", metavar="NAME=VALUE", help="Change one parameter."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the experiment.")] = None,
    with_teachers: Annotated[
        bool,
        typer.Option("--with-teachers", help="Also train the teachers where they are stale."),
    ] = False,
    parallel: Annotated[int, typer.Option(min=1, help="How many stages may run at once.")] = 1,
    pull: Annotated[
        bool, typer.Option("--pull", help="Take from the DVC remote what others have made.")
    ] = False,
    push: Annotated[
        bool, typer.Option("--push", help="Send what was made to the DVC remote.")
    ] = False,
    wait_for_approval: Annotated[
        bool,
        typer.Option(
            "--wait-for-approval", help="Ask a person on Prefect's page before a promotion."
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say which stages would run, and why.")
    ] = False,
) -> None:
    """Run the whole pipeline as a Prefect flow.

    With a recipe or a changed parameter it runs in a worktree of its own and is kept as a DVC
    experiment; the checkout stays as it is.
    """
    root = _checkout()
    _leave_on_sigterm()
    from danceflow.params.read import load_params, override, parse_params, read_assignments
    from danceflow.params.yaml12 import read_yaml

    source = root / "params.yaml" if recipe is None else recipe
    values = read_assignments(assignments or [])
    load_params(source)
    is_new = recipe is not None or name is not None or bool(values)
    if not (is_new or dry_run or with_teachers or pull or push or wait_for_approval):
        from flows.result import result_table
        from flows.settled import settled

        if (found := settled(root)) is not None:
            typer.echo("Every stage is up to date; Prefect has nothing to run.\n")
            typer.echo(result_table(found.summary, found.stages, found.standing))
            return
    from danceflow.method import require_training

    changed = f"{source} with --set" if values else str(source)
    require_training(parse_params(override(read_yaml(source), values), changed), changed)
    if dry_run:
        from flows.dry_run import forecast

        typer.echo("\n".join(map(str, forecast(root, recipe, values))))
        return
    from flows.experiment import require_no_login

    require_no_login(values, "--set")  # before Prefect has it
    from flows.home import at_home
    from flows.pipeline import run_pipeline
    from flows.result import result_table

    with at_home(root):
        result = run_pipeline(
            root=root,
            recipe=None if recipe is None else recipe.resolve(),
            overrides=values,
            name=name,
            max_parallel=parallel,
            with_teachers=with_teachers,
            pull=pull,
            push=push,
            wait_for_approval=wait_for_approval,
        )
    typer.echo(result_table(result.summary, result.stages, result.standing))


@app.command()
def sweep(
    file: Annotated[Path, typer.Argument(help="A sweep file, such as those in sweeps/.")],
    parallel: Annotated[
        int | None, typer.Option(min=1, help="Cells at once; default: what the file says.")
    ] = None,
) -> None:
    """Run a grid of variants and seeds; finished cells are kept.

    Each cell runs in a worktree of its own and becomes a DVC experiment and a run in MLflow.
    """
    root = _checkout()
    _leave_on_sigterm()
    from danceflow.params.sweep import cells_of, read_sweep

    cells_of(read_sweep(file), str(file))
    from flows.home import at_home
    from flows.sweep import cells_table, run_sweep

    with at_home(root):
        cells = run_sweep(file=file.resolve(), root=root, parallel=parallel)
    typer.echo(cells_table(cells))


@app.command()
def experiments() -> None:
    """Show the experiments of the last commit.

    A line tells scores, shares of the teachers' scores and what was changed. It has room in a
    terminal of 120 columns; `dvc exp show` has every parameter, too.
    """
    root = _checkout()
    from flows.overview import experiments_table

    typer.echo(experiments_table(root), nl=False)


@app.command()
def table(
    sweep: Annotated[str, typer.Argument(metavar="SWEEP", help="A sweep's file, or its name.")],
    source: Annotated[
        Origin, typer.Option("--from", help="Where results are read: dvc or mlflow.")
    ] = Origin.DVC,
    out: Annotated[Path, typer.Option(help="Folder for <sweep>.md, .csv and .png.")] = Path(
        "reports/tables"
    ),
    against: Annotated[
        str | None, typer.Option(help="A variant that the others are compared with, by seed.")
    ] = None,
) -> None:
    """Compare the variants of a sweep over its seeds.

    Each gets its mean and 95 % interval.

    With the file exactly its cells are shown and missing ones are named; with the name what was run
    last for each variant and seed.
    """
    root = _checkout()
    from danceflow.report.tables.write import write_table
    from flows.cells import sweep_table

    runtime.require_writable(out)
    found, missing = sweep_table(root, sweep, source.value)
    paths = write_table(out, found, missing, against)
    typer.echo(paths[0].read_text(encoding="utf-8"))
    for path in paths:
        typer.echo(str(path))


@app.command()
def sync() -> None:
    """Send MLflow what it lacks of the runs here.

    That is so after its server was away. What is complete there is not touched.
    """
    root = _checkout()
    from flows.sync import sync as send_all

    for run_id in send_all(root):
        typer.echo(f"run {run_id} is complete")


@app.command()
def stage(
    name: Annotated[str, typer.Argument(help="A stage of dvc.yaml.")],
    capability: Annotated[
        str | None, typer.Option(help="Which one, for a stage that runs once per capability.")
    ] = None,
) -> None:
    """Run one stage here and now; dvc.yaml calls this."""
    root = _checkout()
    from danceflow.stages import run_stage

    run_stage(name, capability, root)


@app.command()
def check() -> None:
    """Check that graph, stages, command line and flow agree."""
    root = _checkout()
    import typer.main

    from danceflow.check import find_problems

    problems = find_problems(root, getattr(typer.main.get_command(app), "commands", {}))
    for problem in problems:
        typer.echo(problem)
    if problems:
        raise DanceflowError(f"{len(problems)} problems")
    typer.echo("dvc.yaml, stages, command line and flow agree")


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what is wrong here, and what to do.

    It looks at the machine's versions, room, ports and device, at the checkout's git, DVC and
    remotes, and at databases, servers and clocks. Nothing is changed. The exit code is 1 where
    something does not work.
    """
    root = _checkout()
    import json

    from flows.doctor.examine import examine
    from flows.doctor.finding import Level

    found = []
    for finding in examine(root):
        found.append(finding)
        if not as_json:
            typer.echo(str(finding))
    if as_json:
        typer.echo(json.dumps([finding.as_data() for finding in found], indent=2))
    if any(finding.level is Level.FAIL for finding in found):
        raise typer.Exit(1)


@app.command()
def clean(
    older_than: Annotated[
        int, typer.Option(metavar="DAYS", min=0, help="Leave what was used since.")
    ] = 14,
) -> None:
    """Remove old work folders, and say what that frees.

    Old is what was not used for some days. Work that a process is doing stays, and so do the
    training of the student in models/student and the answers of a judge, which were paid for.
    Temporary files that killed commands left in DVC's cache go, too.
    """
    root = _checkout()
    from danceflow.ops.clean import clean as clean_work
    from danceflow.paths import Paths
    from flows.dvc_graph import remove_temporaries

    found = clean_work(Paths(root), older_than)
    for folder, num_bytes in found.removed.items():
        typer.echo(f"removed {folder} ({num_bytes / 1e6:,.1f} MB)")
    for folder in found.busy:
        typer.echo(f"left {folder}: a process works in it")
    total = sum(found.removed.values())
    typer.echo(
        f"{len(found.removed)} work folders removed, {total:,} bytes freed; {len(found.kept)} kept"
    )
    if left := remove_temporaries(root, older_than):
        total = sum(left.values())
        typer.echo(f"{len(left)} temporary files of DVC's cache removed, {total:,} bytes freed")


@app.command()
def teachers(
    recipe: Annotated[
        Path | None,
        typer.Option(help="Train only the teachers of this params file that are not there yet."),
    ] = None,
) -> None:
    """Train the teachers again, which nothing else does.

    Their stage is frozen. With a recipe the teachers that models/teachers holds stay, and those it
    lacks are added.
    """
    root = _checkout()
    if recipe is None:
        _leave_on_sigterm()
        from flows.home import at_home
        from flows.pipeline import run_teachers

        with at_home(root):
            run_teachers(root)
        return
    from danceflow.ops import determinism
    from danceflow.params.read import load_params
    from danceflow.paths import Paths
    from danceflow.train.teachers.stage import add

    params = load_params(recipe)
    determinism.prepare(params.run)
    added = add(params, Paths(root))
    typer.echo(f"added to models/teachers: {', '.join(added) or 'nothing, all are there'}")


@app.command(name="bring-teachers")
def bring_teachers(
    pipeline: Annotated[
        str, typer.Argument(help="Folder of a stock diffusers pipeline, or hf://owner/name.")
    ],
    family: Annotated[str, typer.Option(help="Its family, such as zimage.")],
    teacher: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=PATH",
            help="A LoRA file, or a transformer's folder; also hf://owner/name[@revision][/path].",
        ),
    ] = None,
    edits: Annotated[bool, typer.Option(help="Whether some of them edit.")] = False,
    licence: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=LICENCE",
            help="Of a teacher, or of base; default: what stands beside the weights.",
        ),
    ] = None,
) -> None:
    """Bring teachers that were trained elsewhere.

    They take the place of those in models/teachers.
    """
    root = _checkout()
    from danceflow.models.bring import bring_teachers as bring
    from danceflow.ops import hub
    from danceflow.ops.files import atomic_directory, write_json
    from danceflow.paths import Paths

    given = _named(teacher or [], "NAME=PATH")
    licences = _named(licence or [], "NAME=LICENCE")
    paths = Paths(root)
    runtime.require_writable(paths.teachers.parent)
    runtime.require_writable(paths.reports)

    def place(text: str, what: hub.What) -> tuple[Path, str | None]:
        if not hub.is_address(text):
            return Path(text), None
        found = hub.fetch(text, what)
        return found.path, found.address

    named = {name: place(path, "teacher")[0] for name, path in given.items()}
    folder, origin = place(pipeline, "pipeline")
    bring(family, folder, named, paths.teachers, edits=edits, origin=origin, licences=licences)
    with atomic_directory(paths.teachers_images):
        pass  # pictures of other teachers would stay
    write_json(paths.teachers_report, {"teachers": {}})
    typer.echo(str(paths.teachers))


@app.command()
def plan(
    recipe: Annotated[
        Path | None, typer.Argument(help="A params file, such as those in recipes/.")
    ] = None,
    gpu: Annotated[str | None, typer.Option(help="Where it would run, such as h100.")] = None,
    model: Annotated[
        str | None,
        typer.Option(help="A published model, such as z-image, or the folder of a pipeline."),
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", "-S", metavar="NAME=VALUE", help="Change one parameter."),
    ] = None,
    utilisation: Annotated[
        float | None,
        typer.Option(min=0.01, max=1.0, help="Share of the GPU's peak; default: an estimate."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    table: Annotated[
        bool,
        typer.Option("--table", help="Compare all published models at docs/scale.md's training."),
    ] = False,
) -> None:
    """Say what a training costs before it runs.

    It tells parameters, memory, evaluations and hours. Without a recipe it is the training of
    docs/scale.md, with one published model or with all.
    """
    is_alone = not (recipe or model or as_json)
    if table != is_alone or (recipe is None and (assignments or not (table or model))):
        raise UsageError("plan takes a recipe and its options, or --model alone, or --table alone")
    import json

    if table:
        from danceflow.plan.show import as_table

        typer.echo(as_table(gpu, utilisation))
        return
    from danceflow.plan.cost import as_data, plan_recipe
    from danceflow.plan.show import as_text, plan_reference

    if recipe is None:
        found = plan_reference(str(model), gpu, utilisation)
    else:
        from danceflow.params.read import override, parse_params, read_assignments
        from danceflow.params.yaml12 import read_yaml

        values = read_assignments(assignments or [])
        source = f"{recipe} with --set" if values else str(recipe)
        params = parse_params(override(read_yaml(_recipe(recipe)), values), source)
        found = plan_recipe(
            params, model=model, gpu=gpu, utilisation=utilisation, teachers=_teachers()
        )
    typer.echo(json.dumps(as_data(found), indent=2) if as_json else as_text(found))


@app.command()
def recipes() -> None:
    """List the recipes: purpose, hardware and cost."""
    from danceflow.params.recipes import recipes_below

    root = _checkout()
    for recipe in recipes_below(root / "recipes"):
        typer.echo(f"{recipe.path.relative_to(root)}: {recipe.title}")
        for name, text in (
            ("for", recipe.purpose),
            ("needs", recipe.hardware),
            ("expect", recipe.expected),
        ):
            typer.echo(
                textwrap.fill(text, 96, initial_indent=f"  {name:<8}", subsequent_indent=" " * 10)
            )


@app.command()
def explain(
    name: Annotated[
        str | None,
        typer.Argument(
            help="A parameter or a section, such as distill.query; default: the sections.",
            autocompletion=_parameters,
        ),
    ] = None,
) -> None:
    """Say what a parameter means, takes and decides."""
    from danceflow.explain import explanation
    from danceflow.params.yaml12 import read_yaml
    from danceflow.paths import Paths, find_root

    try:
        params = read_yaml(Paths(find_root(Path.cwd())).params)
    except UsageError:  # the meaning is the same everywhere
        params = None
    typer.echo(explanation(name, params))


@app.command()
def schema(
    out: Annotated[Path, typer.Option(help="Folder of the schemas.")] = Path("docs/schema"),
) -> None:
    """Write the JSON Schemas that editors read."""
    from danceflow.params.schema import write_schemas

    for path in write_schemas(out):
        typer.echo(str(path))


@app.command()
def digits() -> None:
    """Write the raw data of recipes/digits.yaml.

    They are scikit-learn's handwritten digits, in data/raw/digits.
    """
    root = _checkout()
    from danceflow.digits.raw import TABLE, write_digits
    from danceflow.paths import Paths

    folder = Paths(root).raw_digits
    runtime.require_writable(folder)
    count = write_digits(folder)
    typer.echo(f"{folder / TABLE}: {count} rows")


@app.command()
def generate(
    prompts: Annotated[list[str], typer.Argument(help="What the images should show.")],
    out: Annotated[Path, typer.Option(help="Folder for the PNG files.")] = Path("generated"),
    source: Source = "champion",
    seed: Seed = 0,
    num_steps: NumSteps = None,
    guidance: Guidance = 1.0,
    device: Device = "cpu",
    size: Annotated[
        str | None,
        typer.Option(help="WIDTHxHEIGHT, one that it was made for; default: the usual one."),
    ] = None,
) -> None:
    """Make images from prompts."""
    from danceflow.data.sizes import read_size

    wanted = None if size is None else read_size(size)
    runtime.require_writable(out)
    images = _student(source, device).generate(prompts, seed, num_steps, guidance, wanted)
    _save(images, out)


def _is_picture(text: str, *, is_first: bool) -> bool:
    """Return whether an argument names a picture: a file, or one word that ends as its name.

    The first one does, but for words that name nothing: what is wrong with it is told then.
    """
    endings = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
    try:
        is_word = not any(map(str.isspace, text))
        if is_first and (is_word or Path(text).exists()):
            return True
        return (is_word and text.lower().endswith(endings)) or Path(text).is_file()
    except (OSError, ValueError):
        return False


@app.command()
def edit(
    given: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE... INSTRUCTION...",
            help="The image to change, further ones that it is told of, and what to do.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the PNG files.")] = Path("edited"),
    source: Source = "champion",
    seed: Seed = 0,
    num_steps: NumSteps = None,
    guidance: Guidance = 1.0,
    device: Device = "cpu",
) -> None:
    """Change an image as told, one result for each instruction.

    Of the sizes that the student makes, the result has the one of the image's aspect. What is a
    file, or is named like a picture, is an image; at least one stands before the instructions.
    """
    others = (n for n, text in enumerate(given) if not _is_picture(text, is_first=n == 0))
    count = next(others, len(given))
    paths, instructions = given[:count], given[count:]
    if not paths or not instructions:
        what = "an instruction behind the images" if paths else "an image before the instructions"
        raise UsageError(f"{given[-1 if paths else 0]!r}: write {what}")
    pictures = [_read(Path(path)) for path in paths]
    runtime.require_writable(out)
    student = _student(source, device)
    images = student.edit([pictures] * len(instructions), instructions, seed, num_steps, guidance)
    _save(images, out)


@app.command()
def export(
    out: Annotated[Path, typer.Argument(help="Folder to write; not there yet, or empty.")],
    kind: Annotated[
        str, typer.Option("--format", help="diffusers, lora, comfyui or pipeline.")
    ] = "pipeline",
    source: Source = "champion",
    push_to: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="Push it to the hub, too.")
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="Whether a repository that is made is for everybody.")
    ] = False,
) -> None:
    """Write a student for other programs, with a model card.

    diffusers is its network, lora its adapter, comfyui the same under ComfyUI's names, and
    pipeline the folder of a whole stock pipeline.
    """
    from danceflow.errors import HubError
    from danceflow.ops import hub
    from danceflow.registry.export import export_student
    from danceflow.registry.open import is_folder

    runtime.require_writable(out.parent)
    if push_to is not None:
        hub.require_repository(push_to)
    settings = None if is_folder(source) else _store_settings(source)
    typer.echo(str(export_student(source, kind, out, settings)))
    if push_to is not None:
        shown = Path(source).name if is_folder(source) else source
        message = f"danceflow export --format {kind} --from {shown}"
        try:
            typer.echo(hub.push_folder(out, push_to, private=not public, message=message))
        except HubError as error:
            again = "hf upload" if public else "hf upload --private"
            raise HubError(
                f"{error}; the export is in {out}: `{again} {push_to.removeprefix(hub.SCHEME)} "
                f"{out} .` pushes it"
            ) from error


@app.command()
def evaluate(
    source: Source = "champion",
    capability: Annotated[
        list[str] | None, typer.Option(help="Which; default: all of params.yaml.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="File for the score of every row, as JSON.")
    ] = None,
) -> None:
    """Score a student by this checkout's evaluation.

    Rows, steps, seeds and judge are the checkout's, which stays as it is. The gate does the same
    with a champion that was evaluated otherwise than the student that would follow it.
    """
    root = _checkout()
    from danceflow.registry.rescore import rescore

    found = rescore(root, source, capability or ())
    if out is not None:
        from danceflow.ops.files import write_text

        write_text(out, found.as_text())
    for line in found.lines():
        typer.echo(line)


@app.command()
def promote(
    version: Annotated[
        int | None, typer.Argument(help="Of the registered model; default: the challenger.")
    ] = None,
    reason: Reason = "",
    wait_for_approval: Annotated[
        bool,
        typer.Option("--wait-for-approval", help="Ask a person on Prefect's page first."),
    ] = False,
) -> None:
    """Make a version the champion, if the gate lets it pass."""
    root = _checkout()
    if wait_for_approval:
        _leave_on_sigterm()
        from flows.approval import run_promotion
        from flows.home import at_home, usual_port

        with at_home(root, usual_port()):
            typer.echo(str(run_promotion(version, reason, root)))
        return
    from flows.promote import promote as promote_version

    typer.echo(str(promote_version(root, version, reason)))


@app.command()
def rollback(reason: Reason = "") -> None:
    """Make the former champion the champion again."""
    root = _checkout()
    from flows.promote import rollback as restore_champion

    typer.echo(str(restore_champion(root, reason)))


@app.command()
def history(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show every change of the champion: when, by whom, and why."""
    root = _checkout()
    from flows.promote import history as changes_of
    from flows.result import history_table

    changes, astray = changes_of(root)
    if as_json:
        import json

        typer.echo(json.dumps([change.as_json() for change in changes], indent=2))
    else:
        typer.echo(history_table(changes))
    if astray is not None:
        typer.echo(f"note: {astray}", err=True)


@app.command()
def diff(
    first: Annotated[str, typer.Argument(help="A version's number, or an alias.")],
    second: Annotated[str, typer.Argument(help="The other one.")],
    out: Annotated[
        Path | None,
        typer.Option(help="Also write a page (.html), or the pictures alone (.png)."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare two versions: scores, origins, pictures."""
    root = _checkout()
    from flows.diff import as_text, check_out, write
    from flows.promote import compare

    check_out(out)
    found = compare(root, first, second, pictures=out is not None)
    if out is not None:
        write(out, found)
    if as_json:
        import json

        typer.echo(json.dumps(found.as_json(), indent=2))
    else:
        typer.echo(as_text(found))
    if out is not None:
        typer.echo(str(out), err=as_json)


@app.command()
def serve(
    cron: Annotated[str, typer.Option(help="When to run, such as '0 2 * * *'.")],
    prefect_port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="Port of Prefect's page; default: 4200 if it is free."),
    ] = None,
) -> None:
    """Run the pipeline on a schedule until interrupted.

    Prefect's page starts further runs and sweeps. One runs at a time, and the others wait.
    """
    root = _checkout()
    _leave_on_sigterm()
    from flows.schedule import serve as serve_flows

    serve_flows(root, cron, prefect_port)


@app.command()
def deploy() -> None:
    """Make the deployments of prefect.yaml on a server.

    Their work pool and the automations that look after runs are made, too.
    """
    root = _checkout()
    from flows.schedule import deploy as deploy_flows

    deploy_flows(root)
    typer.echo("deployed; on the machine of this checkout: prefect worker start --pool danceflow")


@app.command(name="serve-model")
def serve_model(
    source: Source = "champion",
    host: Annotated[
        str, typer.Option(help="Address; one that others reach needs DANCEFLOW_SERVICE_TOKEN.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0: any that is free.")] = 8080,
    device: Device = "cpu",
    threads: Annotated[
        int | None, typer.Option(min=1, help="Of the network on a CPU; default: torch's choice.")
    ] = None,
    together: Annotated[
        int | None,
        typer.Option(min=1, help="Pictures of a batch; default: 4 small ones, else 1."),
    ] = None,
    window: Annotated[
        float, typer.Option(min=0.0, help="Milliseconds that a picture waits for others.")
    ] = 10.0,
    poll: Annotated[
        float, typer.Option(min=0.1, help="Seconds between two looks for a newer version.")
    ] = 10.0,
    drain: Annotated[
        float, typer.Option(min=1.0, help="Seconds in which requests may end after SIGTERM.")
    ] = 60.0,
    max_prompts: Annotated[int, typer.Option(min=1, help="Of one request.")] = 16,
    max_steps: Annotated[int, typer.Option(min=1, help="Of one request.")] = 100,
    max_body: Annotated[int, typer.Option(min=1, help="MiB of a request's body.")] = 16,
    max_pixels: Annotated[int, typer.Option(min=1, help="Of a picture that is sent.")] = 1 << 24,
    max_queue: Annotated[int, typer.Option(min=1, help="Pictures that may wait.")] = 64,
    sample_rate: Annotated[
        float,
        typer.Option(min=0.0, max=1.0, help="Share of requests kept for `danceflow watch`."),
    ] = 0.0,
    sample_pictures: Annotated[
        bool, typer.Option("--sample-pictures", help="Keep their pictures, too.")
    ] = False,
    sample_folder: Annotated[
        Path | None, typer.Option(help="For what is kept; default: .danceflow/served.")
    ] = None,
) -> None:
    """Answer requests for pictures over HTTP until told to stop.

    A version that becomes champion takes over without a request being lost. The token is read from
    DANCEFLOW_SERVICE_TOKEN.
    """
    from danceflow.registry.open import is_folder

    settings = None if is_folder(source) else _store_settings(source)
    from danceflow.service.limits import Limits
    from danceflow.service.serve import Listening, find_source, sample_folder_of
    from danceflow.service.serve import serve_model as serve_source
    from danceflow.service.served import ServedLog

    limits = Limits(max_prompts, max_steps, max_body << 20, max_pixels, queue=max_queue)
    serve_source(
        find_source(source, settings, device, together),
        Listening(host, port, drain, poll, window / 1000, threads),
        limits,
        ServedLog(sample_folder_of(sample_folder), sample_rate, pictures=sample_pictures),
    )


@app.command()
def studio(
    students: Annotated[
        list[str] | None,
        typer.Option(
            "--student",
            "--from",
            help="As generate's --from; several can be chosen on the page. Default: champion.",
        ),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(help="A model service to ask, such as http://127.0.0.1:8080; no weights."),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address; one that others reach needs DANCEFLOW_SERVICE_TOKEN.")
    ] = "127.0.0.1",
    port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="Port; default: 7860 if it is free, else another."),
    ] = None,
    folder: Annotated[
        Path | None, typer.Option(help="Where the tree of pictures is kept; default: studio.")
    ] = None,
    device: Device = "cpu",
) -> None:
    """Show a page to make pictures and change them.

    Every step stays in a tree, which is kept. The page is for this machine alone unless --host says
    otherwise.
    """
    if url is not None and students:
        raise UsageError("--student and --url: the model is here or at a service, not both")
    named = students or ["champion"]
    from danceflow.registry.open import is_folder
    from danceflow.studio.serve import Place, serve_studio, tree_folder
    from flows.ports import free_ports, is_free

    settings = None
    if url is None:
        settings = _studio_settings([text for text in named if not is_folder(text)])
    if port is None:
        port = _STUDIO_PORT if is_free(_STUDIO_PORT) else next(free_ports(1))
    serve_studio(Place(host, port, tree_folder(folder)), named, url, settings, device)


@app.command()
def watch(
    samples: Annotated[
        Path | None, typer.Option(help="Folder of kept requests; default: .danceflow/served.")
    ] = None,
    source: Source = "champion",
    days: Annotated[float, typer.Option(min=0.0, help="How far to look back.")] = 7.0,
) -> None:
    """Compare served requests with the training.

    Where limits of the section watch are crossed, its on_drift says what follows.
    """
    root = _checkout()
    _leave_on_sigterm()
    from flows.home import at_home
    from flows.watch import run_watch, watch_table

    with at_home(root):
        watched = run_watch(root=root, samples=samples, source=source, days=days)
    typer.echo(watch_table(watched))


@app.command()
def ui(
    mlflow_port: Annotated[int, typer.Option(min=1, max=65535, help="Port of MLflow.")] = 5000,
    prefect_port: Annotated[int, typer.Option(min=1, max=65535, help="Port of Prefect.")] = 4200,
) -> None:
    """Show MLflow's and Prefect's pages until interrupted."""
    root = _checkout()
    _leave_on_sigterm()
    from danceflow.params.read import load_params
    from flows.pages import serve_pages

    serve_pages(root, load_params(root / "params.yaml"), mlflow_port, prefect_port)


@team_app.command(name="up")
def team_up(
    port: Annotated[
        list[str] | None,
        typer.Option(metavar="SERVICE=PORT", help="Where a service listens; default: free ones."),
    ] = None,
    model: Annotated[bool, typer.Option("--model", help="The model service, too.")] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Stay, and start again whatever ends.")
    ] = False,
) -> None:
    """Start the servers of a team, and say where they are.

    What runs already stays. Data, logs and passwords lie in .danceflow/team.
    """
    root = _checkout()
    from flows.team import run as servers
    from flows.team.settings import read_ports

    found = servers.up(root, read_ports(port or []), with_model=model)
    for item in found:
        if item.is_running:
            typer.echo(f"{item.name:10}{item.address}")
    typer.echo(
        "work with them: danceflow team exec danceflow run, or in a shell: "
        "set -a; source .danceflow/team/env"
    )
    if watch:
        servers.watch(root, with_model=model)


@team_app.command(name="down")
def team_down() -> None:
    """End the servers of a team; their data stay."""
    root = _checkout()
    from flows.team.run import down

    typer.echo(f"ended: {', '.join(down(root)) or 'nothing, none was running'}")


@team_app.command(name="status")
def team_status() -> None:
    """Say how the servers of a team stand."""
    root = _checkout()
    from flows.team.run import standing

    for item in standing(root):
        state = "ready" if item.is_ready else "starts or hangs" if item.is_running else "ended"
        typer.echo(f"{item.name:10}{item.address:28}{state}")


@team_app.command(
    name="exec", context_settings={"allow_interspersed_args": False, "ignore_unknown_options": True}
)
def team_exec(
    command: Annotated[list[str], typer.Argument(help="A program and its arguments.")],
) -> None:
    """Run a command with the addresses and passwords of a team's servers."""
    root = _checkout()
    from flows.team.run import call

    raise typer.Exit(call(root, command))


def main() -> None:
    """Run the command line: one clear line and exit code 1 or 2 for every foreseen error."""
    try:
        app()
    except DanceflowError as error:
        _LOG.debug("raised here", exc_info=True)
        runtime.end_progress_bars()
        typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except Exception:  # unforeseen: its last line tells most, so no bar may stand behind it
        runtime.end_progress_bars()
        raise


def _leave_on_sigterm() -> None:
    """Make SIGTERM leave as an exit does, so that servers that were started are ended, too.

    A flow ends its stages on SIGTERM and passes the signal on; Python's default would then end the
    process at once, and Prefect's temporary server would stay.
    """
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))


def _checkout() -> Path:
    """Return the checkout of the working folder; its own code goes on from here."""
    from danceflow.paths import find_root

    root = find_root(Path.cwd())
    runtime.use_code_of(root)
    return root


def _named(items: "Sequence[str]", form: str) -> dict[str, str]:
    """Return what NAME=VALUE options say by name; raises ``UsageError`` for another form."""
    found = {}
    for item in items:
        name, equals, value = item.partition("=")
        if not (name and equals and value):
            raise UsageError(f"{item!r}: write it as {form}")
        found[name] = value
    return found


def _recipe(path: Path) -> Path:
    """Return a params file; raises ``UsageError`` naming the nearest if there is none."""
    if path.is_file():
        return path
    from danceflow.errors import unknown_name

    folder = path.parent if path.parent != Path() else Path("recipes")
    raise UsageError(unknown_name("recipe", path.name, [f.name for f in folder.glob("*.yaml")]))


def _teachers() -> Path | None:
    """Return the checkout's folder of teachers; a recipe can be planned outside of one."""
    from danceflow.paths import Paths, find_root

    try:
        return Paths(find_root(Path.cwd())).teachers
    except UsageError:
        return None


def _student(source: str, device: str) -> "Student":
    """Return the student of a folder, which may lie anywhere, or of the checkout's store."""
    from danceflow.registry.open import is_folder, open_student

    if is_folder(source):
        return open_student(source, device=device)
    return open_student(source, _store_settings(source), device)


def _store_settings(source: str) -> "TrackingSettings":
    """Return the store of the checkout, or, where there is none, that of the environment."""
    from danceflow.ops.tracking import TrackingSettings
    from danceflow.params.read import load_params
    from danceflow.paths import find_root

    if source.startswith("models:/") and os.environ.get("MLFLOW_TRACKING_URI"):
        try:
            find_root(Path.cwd())
        except UsageError:  # a container, which has no checkout
            return TrackingSettings(Path.cwd(), True, None, "danceflow", "")
    root = _checkout()
    return TrackingSettings.of(root, load_params(root / "params.yaml").tracking)


def _studio_settings(entries: "Sequence[str]") -> "TrackingSettings | None":
    """Return the store to choose from; folders alone can do without one.

    Args:
        entries: students that a store must have.
    """
    if entries:
        return _store_settings(entries[0])
    from danceflow.paths import find_root

    try:
        find_root(Path.cwd())
    except UsageError:
        return None
    return _store_settings("champion")


def _read(path: Path) -> "Image":
    from danceflow.pictures import decode, read_file

    try:
        return decode(read_file(path))
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def _save(images: "Sequence[Image]", folder: Path) -> None:
    from danceflow.ops.files import write_bytes
    from danceflow.pictures import png_bytes

    for index, image in enumerate(images):
        path = folder / f"{index:03d}.png"
        write_bytes(path, png_bytes(image, compress_level=6))
        typer.echo(str(path))


if __name__ == "__main__":
    main()
