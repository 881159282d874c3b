"""One number for each way in which served requests can differ, its limit and its certainty.

A limit counts as crossed when the difference is larger than it *and* chance does not explain that:
the bound of its interval lies beyond the limit, or the test of equality refuses at ``alpha``.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from danceflow.params.sections import WatchParams

Decision = Literal["within", "crossed", "unknown"]

_MAX_ROWS = 500  # of each side, that a classifier is trained on
_NUM_FOLDS = 5
_NUM_RESAMPLES = 2000
_WORD = re.compile(r"\w+(?:['’-]\w+)*")


@dataclass(frozen=True)
class Check:
    """One comparison.

    Attributes:
        name: of the limit in the parameters, without ``max_``.
        kind: ``generate`` or ``edit``.
        decision: whether the limit is crossed; ``unknown``: there is too little to tell.
        value: what was measured; None: nothing.
        limit: what it may be.
        text: the finding in a sentence.
    """

    name: str
    kind: str
    decision: Decision
    value: float | None
    limit: float
    text: str


def words_of(prompt: str) -> list[str]:
    """Return the words of a prompt, without case and punctuation."""
    return _WORD.findall(prompt.casefold())


def unknown_words(served: Sequence[str], trained: Sequence[str]) -> Counter[str]:
    """Return the words of served prompts that no training prompt has, by number of prompts."""
    known = {word for prompt in dict.fromkeys(trained) for word in words_of(prompt)}
    return Counter(word for prompt in served for word in set(words_of(prompt)) - known)


def check_words(
    kind: str, served: Sequence[str], trained: Sequence[str], policy: WatchParams
) -> Check:
    """Return the share of served prompts with a word that no training prompt has (Wilson)."""
    from scipy.stats import binomtest

    name, limit = "unknown_words", policy.max_unknown_words
    if short := _too_few(name, kind, len(served), policy, limit):
        return short
    unknown = unknown_words(served, trained)
    count = sum(any(word in unknown for word in words_of(prompt)) for prompt in served)
    share = count / len(served)
    low = binomtest(count, len(served)).proportion_ci(1 - 2 * policy.alpha, method="wilson").low
    text = f"{share:.1%} of {len(served)} prompts have a word that no training prompt has"
    if unknown:
        text += f", most often {', '.join(word for word, _ in unknown.most_common(3))}"
    return Check(name, kind, _crossed(low > limit), share, limit, text)


def check_lengths(
    kind: str, served: Sequence[str], trained: Sequence[str], policy: WatchParams
) -> Check:
    """Return the two-sample Kolmogorov-Smirnov distance of the prompts' lengths in words."""
    from scipy.stats import ks_2samp

    name, limit = "length_shift", policy.max_length_shift
    if short := _too_few(name, kind, len(served), policy, limit):
        return short
    lengths = [[len(words_of(prompt)) for prompt in prompts] for prompts in (served, trained)]
    found = ks_2samp(*lengths)
    distance = float(found.statistic)
    means = [float(np.mean(item)) for item in lengths]
    text = (
        f"prompts have {means[0]:.1f} words on average, in training {means[1]:.1f}; the "
        f"distributions are {distance:.2f} apart"
    )
    is_so = distance > limit and found.pvalue < policy.alpha
    return Check(name, kind, _crossed(is_so), distance, limit, text)


def check_embeddings(
    kind: str, served: np.ndarray[Any, Any], trained: np.ndarray[Any, Any], policy: WatchParams
) -> tuple[Check, list[int]]:
    """Return how well a classifier tells served from training prompts, and the most foreign ones.

    The classifier two-sample test (Lopez-Paz, Oquab 2017, "Revisiting classifier two-sample
    tests"): a logistic regression scores prompts that it was not trained on. The area under the
    curve is 0.5 where both come from one distribution.

    Args:
        kind: of the requests.
        served: [N, D] embeddings of served prompts.
        trained: [M, D] embeddings of training prompts.
        policy: the limits.
    """
    from scipy.stats import mannwhitneyu
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    name, limit = "embedding_shift", policy.max_embedding_shift
    if short := _too_few(name, kind, len(served), policy, limit):
        return short, []
    labels = np.repeat([1, 0], [len(served), len(trained)])
    folds = min(_NUM_FOLDS, len(served), len(trained))
    if folds < 2:
        text = "there are too few training prompts to compare with"
        return Check(name, kind, "unknown", None, limit, text), []
    scores = cross_val_predict(
        make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500)),
        np.concatenate([served, trained]),
        labels,
        cv=StratifiedKFold(folds, shuffle=True, random_state=0),
        method="decision_function",
    )
    found = mannwhitneyu(scores[labels == 1], scores[labels == 0], alternative="greater")
    area = float(found.statistic) / (len(served) * len(trained))
    text = (
        f"a classifier tells served from training prompts; the area under its curve is {area:.2f}"
    )
    is_so = area > limit and found.pvalue < policy.alpha
    order = np.argsort(-scores[labels == 1], kind="stable")
    return Check(name, kind, _crossed(is_so), area, limit, text), [int(i) for i in order]


def check_scores(
    kind: str, scores: Sequence[float], expected: Sequence[float], policy: WatchParams
) -> Check:
    """Return the share of the evaluation's score that served pictures lack (bootstrap over rows).

    Args:
        kind: of the requests.
        scores: of served pictures, shares of the best.
        expected: the evaluation's mean for each one's category, on the same scale.
        policy: the limits.
    """
    name, limit = "score_loss", policy.max_score_loss
    if not scores:
        text = "no served picture could be scored: none was kept, or nothing is known of them"
        return Check(name, kind, "unknown", None, limit, text)
    if short := _too_few(name, kind, len(scores), policy, limit):
        return short
    wanted = float(np.mean(expected))
    if wanted <= 0.0:
        text = "the evaluation's own score is 0, so there is nothing to lose"
        return Check(name, kind, "unknown", None, limit, text)
    values = np.asarray(scores, dtype=float)
    generator = np.random.default_rng(0)
    means = [
        values[generator.integers(0, len(values), len(values))].mean()
        for _ in range(_NUM_RESAMPLES)
    ]
    loss = 1.0 - float(values.mean()) / wanted
    least = 1.0 - float(np.quantile(means, 1 - policy.alpha)) / wanted
    text = (
        f"{len(scores)} pictures score {values.mean():.3f} on average, their categories in the "
        f"evaluation {wanted:.3f}"
    )
    return Check(name, kind, _crossed(least > limit), loss, limit, text)


def drawn(count: int) -> list[int]:
    """Return at most so many places as a classifier is trained on, in order, the same each time."""
    if count <= _MAX_ROWS:
        return list(range(count))
    chosen = np.random.default_rng(0).choice(count, _MAX_ROWS, replace=False)
    return sorted(int(place) for place in chosen)


def _crossed(is_so: bool) -> Decision:
    return "crossed" if is_so else "within"


def _too_few(name: str, kind: str, count: int, policy: WatchParams, limit: float) -> Check | None:
    if count >= policy.min_requests:
        return None
    text = f"{count} are there, {policy.min_requests} are needed"
    return Check(name, kind, "unknown", None, limit, text)
