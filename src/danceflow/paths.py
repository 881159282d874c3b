"""Where everything lies below the root of a checkout."""

from dataclasses import dataclass
from pathlib import Path

from danceflow.errors import UsageError

MANIFEST = "manifest.json"
"""In a model's folder: how it was made, and the SHA-256 of its files."""


@dataclass(frozen=True)
class Paths:
    """Every place that a stage reads or writes.

    Attributes:
        root: The checkout: the folder that holds ``dvc.yaml`` and ``params.yaml``.
    """

    root: Path

    # Parameters and the graph.

    @property
    def params(self) -> Path:
        """The parameters of the checkout."""
        return self.root / "params.yaml"

    @property
    def graph(self) -> Path:
        """DVC's description of the stages."""
        return self.root / "dvc.yaml"

    # Data.

    @property
    def raw(self) -> Path:
        """What users bring; nothing below it is ever changed."""
        return self.root / "data" / "raw"

    @property
    def raw_digits(self) -> Path:
        """The handwritten digits as a table and its pictures."""
        return self.raw / "digits"

    @property
    def buckets(self) -> Path:
        """The normalised samples of all capabilities."""
        return self.root / "data" / "buckets"

    def bucket(self, name: str) -> Path:
        """Return where the samples of one bucket lie."""
        return self.buckets / name

    @property
    def caches(self) -> Path:
        """What is computed once before training, of all capabilities."""
        return self.root / "data" / "cache"

    def cache(self, capability: str) -> Path:
        """Conditions and teacher samples of one capability."""
        return self.caches / capability

    # Models.

    @property
    def teachers(self) -> Path:
        """The weights of all teachers."""
        return self.root / "models" / "teachers"

    def teacher(self, name: str) -> Path:
        """Return where the weights of one teacher lie."""
        return self.teachers / name

    @property
    def student(self) -> Path:
        """The student as it is registered and served."""
        return self.root / "models" / "student"

    # Reports.

    @property
    def reports(self) -> Path:
        """Every figure and page that a run leaves."""
        return self.root / "reports"

    @property
    def data_report(self) -> Path:
        """What the prepared data holds."""
        return self.reports / "data.json"

    @property
    def teachers_report(self) -> Path:
        """Every teacher's score on every capability."""
        return self.reports / "teachers.json"

    @property
    def teachers_images(self) -> Path:
        """Image grids of the teachers."""
        return self.reports / "teachers"

    @property
    def distill_report(self) -> Path:
        """Curves, image grids and the run pointer of the training."""
        return self.reports / "distill"

    @property
    def distill_metrics(self) -> Path:
        """One JSON line per logged update."""
        return self.distill_report / "metrics.jsonl"

    @property
    def run_pointer(self) -> Path:
        """Which tracked run the training wrote to."""
        return self.distill_report / "run.json"

    @property
    def evaluations(self) -> Path:
        """The scores of every field, one file per capability."""
        return self.reports / "evaluate"

    def evaluation(self, capability: str) -> Path:
        """Return where the scores of every field on one capability lie."""
        return self.evaluations / f"{capability}.json"

    def evaluation_images(self, capability: str) -> Path:
        """Return where the image grids of one capability lie."""
        return self.evaluations / capability

    def evaluation_identity(self, capability: str) -> Path:
        """Return where an evaluation tells what decided what was asked and how it was scored."""
        return self.evaluation_images(capability) / "identity.json"

    def evaluation_by_steps(self, capability: str) -> Path:
        """Return where scores by the number of steps lie, of the student and the own teacher."""
        return self.evaluation_images(capability) / "by-steps.json"

    @property
    def report_page(self) -> Path:
        """The self-contained page."""
        return self.reports / "report.html"

    def run_links(self, key: str) -> Path:
        """Return where a flow says how the runs of a training are reached; the page shows it.

        Args:
            key: of the training; experiments and the checkout have one of these folders together.
        """
        return self.reports / "runs" / f"{Path(key).name}.html"

    @property
    def summary(self) -> Path:
        """Retention and gain per capability."""
        return self.reports / "summary.json"

    @property
    def metrics(self) -> Path:
        """The few numbers that runs are compared by; the only report of a run that git holds."""
        return self.reports / "metrics.json"

    @property
    def gate(self) -> Path:
        """The verdict of the promotion gate."""
        return self.reports / "gate.json"

    # Known to neither git nor DVC.

    @property
    def prefect(self) -> Path:
        """Prefect's database, where no server is configured."""
        return self.root / ".prefect"

    @property
    def studio(self) -> Path:
        """The tree of pictures that designers made; no clean removes it."""
        return self.root / "studio"

    # Scratch, known to neither git nor DVC.

    @property
    def scratch(self) -> Path:
        """What may be deleted at any time, but for the data of a team's servers."""
        return self.root / ".danceflow"

    @property
    def team(self) -> Path:
        """Data, passwords and logs of a team's servers on this machine."""
        return self.scratch / "team"

    @property
    def worktrees(self) -> Path:
        """Git worktrees of experiments, while they run."""
        return self.scratch / "worktrees"

    @property
    def started_from(self) -> Path:
        """In an experiment's worktree: which checkout it was made for."""
        return self.scratch / "started-from"

    def work(self, name: str) -> Path:
        """Return the folder of one piece of work; a stage's outs are deleted on a retry.

        What decides a result decides the name: ``danceflow.ops.keys`` gives it.
        """
        return self.scratch / "work" / name

    @property
    def served(self) -> Path:
        """Samples of what the model service was asked."""
        return self.scratch / "served"

    @property
    def watched(self) -> Path:
        """Comparisons of served requests with the training prompts, a folder each."""
        return self.scratch / "watch"

    @property
    def judge_answers(self) -> Path:
        """Every answer that a judge ever gave, by question; paid for, and kept by every clean."""
        return self.work("judge-answers")

    def judge_questions(self, capability: str) -> Path:
        """Questions and pictures that an offline judge leaves."""
        return self.work(f"judge-questions-{capability}")


def find_root(start: Path) -> Path:
    """Return the checkout that a folder lies in.

    Args:
        start: The folder to search upwards from.

    Raises:
        UsageError: Neither it nor a parent holds ``dvc.yaml`` and ``params.yaml``.
    """
    start = start.resolve()
    for folder in (start, *start.parents):
        if (folder / "dvc.yaml").is_file() and (folder / "params.yaml").is_file():
            return folder
    raise UsageError(f"{start}: neither it nor a parent folder holds dvc.yaml and params.yaml")
