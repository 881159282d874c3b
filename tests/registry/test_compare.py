from scored import evidence_of, scored

from danceflow.registry.compare import _score_pair, _scores


def test_only_the_same_evaluation_is_compared():
    ours, theirs = scored(0.8), scored(0.9, num_steps=8)
    other = _score_pair([ours], [theirs])
    assert (other.difference, other.interval) == (None, None)
    assert other.note == "evaluated otherwise: num_steps"
    assert (round(other.first, 6), round(other.second, 6)) == (0.8, 0.9)
    # An older evaluation of one that is the same as the other's is taken.
    again = _score_pair([ours, scored(0.7, num_steps=8)], [theirs])
    assert round(again.difference, 6) == 0.2
    assert again.note == ""


def test_intervals_are_paired():
    """Prompts of very different difficulty, on each of which the second is a little better."""
    hard = [0.1 + 0.02 * place for place in range(30)]
    found = _score_pair([scored(hard)], [scored([score + 0.01 for score in hard])])
    low, high = found.interval
    assert 0.0099 < low <= high < 0.0101


def test_what_one_was_not_asked_is_said():
    one, other = evidence_of(0.5), evidence_of(0.6, capabilities=("t2i", "edit"))
    found = _scores([one], [other])
    assert found["t2i"].difference is not None
    assert (found["edit"].first, found["edit"].note) == (None, "one of them was not asked")
    assert _scores([], []) == {}
