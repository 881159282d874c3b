import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from registry_commands import (
    NAME,
    Judged,
    at_once,
    consider,
    enter,
    killed_at,
    promote,
    rollback,
)

from danceflow.errors import TrackingError, UsageError
from danceflow.ops.tracking import TrackingSettings, open_store
from danceflow.registry import history, promotion
from danceflow.registry.history import Approval, Change, ConflictError, History, line_of
from danceflow.registry.promotion import CHALLENGER, CHAMPION, PREVIOUS, WITHDRAWN_TAG


@pytest.fixture
def promotions(tracking: TrackingSettings) -> Judged:
    return Judged(open_store(tracking), NAME)


def live(promotions: Judged) -> tuple[int | None, int | None]:
    """The versions that the aliases champion and previous are at."""
    aliases = promotions._store.client.get_registered_model(NAME).aliases
    return tuple(int(aliases[name]) if name in aliases else None for name in (CHAMPION, PREVIOUS))


def withdrawn(promotions: Judged) -> set[int]:
    found = promotions._store.client.search_model_versions(f"name = '{NAME}'")
    return {int(version.version) for version in found if WITHDRAWN_TAG in version.tags}


def actions(promotions: Judged) -> list[tuple[str, int | None, int | None]]:
    return [(item.action, item.version, item.previous) for item in promotions.history()]


def check_whole(promotions: Judged) -> None:
    """No entry is missing or stands there twice, and the aliases are at its end."""
    history = promotions.history()
    champion = None
    for change in history:
        assert change.previous == champion, history
        if change.action != "refused":
            champion = change.version
    line = line_of(history)
    assert live(promotions) == (line[-1], line[-2] if len(line) > 1 else None)
    assert promotions.astray() is None


# ------------------------------------------------------------------------------ what is kept


def test_reasons_users_and_approvals_are_kept(promotions):
    enter(promotions, 2)
    promotions.promote(1, None, "the first that draws hands")
    approval = Approval("Ada", "2026-01-01T00:00:00+00:00", "looks right")
    promotions.promote(2, None, approval=approval)
    promotions.rollback("it forgot how to count")
    first, second, third = promotions.history()
    assert first.reason == "the first that draws hands"
    assert second.approval == approval
    assert (third.reason, third.withdraws) == ("it forgot how to count", (2,))
    assert all(change.user for change in promotions.history())
    check_whole(promotions)
    # On MLflow's page the log can be read, too.
    client = promotions._store.client
    entry = client.get_model_version(f"{NAME}-history", "2")
    assert "promote: version 2 is the champion (before: version 1)" in entry.description
    assert "Ada" in entry.description
    assert "looks right" in entry.description


def test_previous_is_the_champion_before_and_goes_with_it(promotions):
    enter(promotions, 3)
    for number, expected in [(1, (1, None)), (2, (2, 1)), (3, (3, 2))]:
        promotions.promote(number, None)
        assert live(promotions) == expected
    promotions.rollback()
    assert live(promotions) == (2, 1)
    promotions.rollback()
    assert live(promotions) == (1, None)
    promotions.promote(3, None)
    assert live(promotions) == (3, 1)
    promotions._store.client.delete_registered_model_alias(NAME, PREVIOUS)
    promotions.consider(enter(promotions, 1)[0], None, auto_promote=False)
    assert live(promotions) == (3, 1)


def test_a_clock_that_goes_back_changes_no_order(promotions, monkeypatch):
    enter(promotions, 3)
    times = iter(["2031-01-01T00:00:00+00:00", "2026-01-01T00:00:00+00:00", "1970-01-01T00:00:00"])
    monkeypatch.setattr(history, "now", lambda: next(times))
    for number in (1, 2, 3):
        promotions.promote(number, None)
    assert [change.version for change in promotions.history()] == [1, 2, 3]
    monkeypatch.undo()
    assert promotions.rollback().version == 2
    check_whole(promotions)


def test_a_refused_version_waits_for_a_person(promotions):
    enter(promotions, 2)
    promotions.promote(1, None)
    change = promotions.refuse(2, Approval("Ada", "2026-01-01T00:00:00+00:00", "six fingers"))
    assert str(change) == "refused: version 2 does not become champion (version 1 stays)"
    version = promotions._store.client.get_model_version(NAME, "2")
    standing = promotions.consider(version, None, auto_promote=True)
    assert (standing.refused, standing.champion, standing.change) == (True, False, None)
    check_whole(promotions)
    promotions.promote(2, None)
    promotions.rollback()
    check_whole(promotions)
    assert actions(promotions)[1] == ("refused", 2, 1)


def test_entries_of_older_versions_are_read_first(promotions):
    enter(promotions, 3)
    client = promotions._store.client
    for number, version, previous in [(1, 1, None), (2, 2, 1)]:
        old = {"action": "promote", "version": version, "previous": previous}
        old |= {"time": "2025-01-01T00:00:00+00:00", "user": "ada"}
        client.set_registered_model_tag(NAME, f"promotion.{number:06d}", json.dumps(old))
    client.set_registered_model_alias(NAME, CHAMPION, "2")
    promotions.promote(3, None)
    assert actions(promotions) == [("promote", 1, None), ("promote", 2, 1), ("promote", 3, 2)]
    promotions.rollback()
    promotions.rollback()
    assert withdrawn(promotions) == {2, 3}
    check_whole(promotions)


def test_what_is_no_entry_is_told(promotions):
    enter(promotions, 1)
    client = promotions._store.client
    client.set_registered_model_tag(NAME, "promotion.000001", "{}")
    with pytest.raises(TrackingError, match=r"promotion.000001: is no entry of a history"):
        promotions.history()


def test_a_reason_has_an_end(promotions):
    enter(promotions, 1)
    with pytest.raises(UsageError, match="reason: 2000 characters, at most 1000 are kept"):
        promotions.promote(1, None, "x" * 2000)


def test_an_entry_that_was_deleted_by_hand_takes_no_other_with_it(promotions):
    enter(promotions, 3)
    for number in (1, 2, 3):
        promotions.promote(number, None)
    promotions._store.client.delete_model_version(f"{NAME}-history", "2")
    assert [change.version for change in promotions.history()] == [1, 3]
    promotions.rollback()
    assert live(promotions)[0] == 1


# --------------------------------------------------------------------------- moved by hand


@pytest.mark.parametrize("command", ["rollback", "promote", "consider"])
def test_an_alias_that_was_moved_by_hand_is_told_and_written_down(promotions, caplog, command):
    enter(promotions, 4)
    for number in (1, 2, 3):
        promotions.promote(number, None)
    client = promotions._store.client
    client.set_registered_model_alias(NAME, CHAMPION, "2")
    assert "moved by hand: it is at version 2, and was put to version 3" in promotions.astray()
    if command == "rollback":
        assert promotions.rollback().version == 1
    elif command == "promote":
        assert promotions.promote(4, None).previous == 2
    else:
        # Who moved it back does not want version 3 again every night.
        standing = promotions.consider(client.get_model_version(NAME, "3"), None, auto_promote=True)
        assert standing.withdrawn
        assert live(promotions) == (2, 1)
    assert "moved by hand from version 3 to version 2" in caplog.text
    assert actions(promotions)[3] == ("moved by hand", 2, 3)
    assert 3 in withdrawn(promotions)
    check_whole(promotions)


def test_an_alias_that_was_moved_forward_by_hand_can_be_rolled_back(promotions):
    enter(promotions, 2)
    promotions.promote(1, None)
    promotions._store.client.set_registered_model_alias(NAME, CHAMPION, "2")
    assert promotions.rollback().version == 1
    assert withdrawn(promotions) == {2}
    check_whole(promotions)


def test_an_alias_that_was_taken_away_by_hand_comes_back_with_a_rollback(promotions):
    enter(promotions, 2)
    promotions.promote(1, None)
    promotions.promote(2, None)
    promotions._store.client.delete_registered_model_alias(NAME, CHAMPION)
    change = promotions.rollback()
    assert (change.version, change.previous) == (2, None)
    assert withdrawn(promotions) == set()
    check_whole(promotions)


def test_a_champion_that_only_the_alias_knows_is_written_down(promotions):
    enter(promotions, 2)
    promotions._store.client.set_registered_model_alias(NAME, CHAMPION, "1")
    promotions.promote(2, None)
    assert actions(promotions) == [("moved by hand", 1, None), ("promote", 2, 1)]
    assert promotions.rollback().version == 1


# ------------------------------------------------------------------------------ killed


def begun(promotions: Judged) -> None:
    """Version 2 is the champion after version 1, and version 3 was rolled back once."""
    enter(promotions, 3)
    for number in (1, 2, 3):
        promotions.promote(number, None)
    promotions.rollback()
    assert live(promotions) == (2, 1)
    assert withdrawn(promotions) == {3}


@pytest.mark.pipeline
def test_a_promotion_that_was_killed_is_mended_by_the_next_command(mlflow_template, tmp_path):
    for settings, entries in killed(mlflow_template, tmp_path, promote, 3):
        is_written = entries > 4
        promotions = copied(settings, "rollback")
        # Never forward; and the good version is not withdrawn.
        assert promotions.rollback().version == (2 if is_written else 1)
        assert withdrawn(promotions) == ({3} if is_written else {2, 3})
        check_mended(promotions)

        promotions = copied(settings, "consider")
        version = promotions._store.client.get_model_version(NAME, "3")
        promotions.consider(version, None, auto_promote=True)
        assert live(promotions) == ((3, 2) if is_written else (2, 1))
        assert withdrawn(promotions) == (set() if is_written else {3})
        check_mended(promotions)

        promotions = copied(settings, "promote")
        promotions.promote(3, None)
        assert live(promotions) == (3, 2)
        assert withdrawn(promotions) == set()
        with pytest.raises(UsageError, match="is the champion already"):
            promotions.promote(3, None)
        check_mended(promotions)


@pytest.mark.pipeline
def test_a_rollback_that_was_killed_is_mended_by_the_next_command(mlflow_template, tmp_path):
    for settings, entries in killed(mlflow_template, tmp_path, rollback):
        is_written = entries > 4
        promotions = copied(settings, "rollback")
        # Called again, it does not go back two steps.
        assert promotions.rollback().version == 1
        assert live(promotions) == (1, None)
        assert withdrawn(promotions) == {2, 3}
        check_mended(promotions)

        promotions = copied(settings, "consider")
        version = promotions._store.client.get_model_version(NAME, "2")
        promotions.consider(version, None, auto_promote=True)
        assert live(promotions) == ((1, None) if is_written else (2, 1))
        assert withdrawn(promotions) == ({2, 3} if is_written else {3})
        check_mended(promotions)


def killed(mlflow_template, folder, command, *arguments) -> Iterator[tuple[TrackingSettings, int]]:
    """Yield stores in which a command was killed at each of its writes, and their entries."""
    start = settings_in(folder / "start")
    (start.root / "mlflow.db").write_bytes(mlflow_template.read_bytes())
    begun(Judged(open_store(start), NAME))
    for write in range(99):
        settings = settings_in(folder / str(write))
        shutil.copy(start.root / "mlflow.db", settings.root)
        if not killed_at(write, command, settings, *arguments):
            assert write >= 6
            return
        yield settings, len(copied(settings, "look").history())


def copied(settings: TrackingSettings, name: str) -> Judged:
    copy = settings_in(settings.root / name)
    shutil.copy(settings.root / "mlflow.db", copy.root)
    return Judged(open_store(copy), NAME)


def settings_in(root: Path) -> TrackingSettings:
    root.mkdir(parents=True)
    return TrackingSettings(root, True, None, "scenes", NAME)


def check_mended(promotions: Judged) -> None:
    line = line_of(promotions.history())
    assert live(promotions) == (line[-1], line[-2] if len(line) > 1 else None)
    assert promotions.astray() is None


def test_what_a_living_process_does_is_waited_for(promotions, monkeypatch):
    enter(promotions, 2)
    promotions.promote(1, None)
    History(promotions._store, NAME).append(Change.now("promote", 2, 1), 1)
    assert f"process {os.getpid()} on" in promotions.astray()
    monkeypatch.setattr(promotion, "_OWN_LEASE_S", 0.3)
    with pytest.raises(ConflictError, match=f"process {os.getpid()} on .* does not end"):
        promotions.rollback()
    assert live(promotions) == (1, None)


def test_what_another_machine_left_is_taken_over_after_a_while(promotions, monkeypatch):
    enter(promotions, 2)
    promotions.promote(1, None)
    monkeypatch.setattr("socket.gethostname", lambda: "elsewhere")
    History(promotions._store, NAME).append(Change.now("promote", 2, 1), 1)
    monkeypatch.undo()
    monkeypatch.setattr(promotion, "_FOREIGN_LEASE_S", 0.3)
    assert promotions.rollback().version == 1
    check_whole(promotions)


# ------------------------------------------------------------------------------ at once


@pytest.mark.pipeline
def test_of_changes_at_once_one_wins_and_the_others_say_why(tracking, promotions):
    enter(promotions, 6)
    promotions.promote(1, None)
    promotions.promote(2, None)
    for _ in range(2):
        before = len(promotions.history())
        commands = [(promote, tracking, number) for number in (3, 4, 5, 6)]
        commands += [(rollback, tracking)] * 2
        answers = at_once(commands)
        won = [said for error, said in answers if not error]
        lost = [said for error, said in answers if error == "ConflictError"]
        already = [said for error, said in answers if error == "UsageError"]
        assert len(won) + len(lost) + len(already) == len(commands), answers
        told = ("is the champion already", "there was no champion before")
        assert all(any(words in said for words in told) for said in already)
        assert all("another change came first, by" in said for said in lost)
        entries = promotions.history()[before:]
        assert sorted(map(str, entries)) == sorted(won)
        assert won
        check_whole(promotions)


@pytest.mark.pipeline
def test_schedules_at_once_promote_one_after_the_other(tracking, promotions):
    enter(promotions, 6)
    promotions.promote(1, None)
    answers = at_once([(consider, tracking, number) for number in (2, 3, 4, 5, 6)])
    assert [error for error, _ in answers] == [""] * 5
    assert sorted(change.version for change in promotions.history()) == [1, 2, 3, 4, 5, 6]
    check_whole(promotions)
    assert promotions.holder(CHALLENGER) is not None


def test_the_line_ends_at_the_champion_of_now():
    def line(*changes: tuple[str, int | None]) -> list[int]:
        return line_of([Change(action, version, None, "", "") for action, version in changes])

    assert line(("promote", 1), ("promote", 2), ("promote", 3), ("rollback", 2)) == [1, 2]
    assert line(("promote", 1), ("promote", 2), ("moved by hand", 1)) == [1]
    assert line(("promote", 1), ("moved by hand", 5), ("mended", 5)) == [1, 5]
    assert line(("promote", 1), ("refused", 2), ("moved by hand", None)) == [1]
    assert line(("promote", 1), ("promote", 2), ("promote", 1)) == [1, 2, 1]
