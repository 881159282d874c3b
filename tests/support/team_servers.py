"""What the tests of a team's servers share."""

import secrets
from dataclasses import dataclass

from checkout import Checkout

from flows.team.settings import Team

PLANTED = {name: f"planted-{secrets.token_urlsafe(18)}" for name in ("JUDGE_KEY", "WEBHOOK_SECRET")}
"""Secrets that a team has in the environment beside those that were made here."""


@dataclass(frozen=True)
class Servers:
    """The servers, and a checkout that works with them.

    Attributes:
        checkout: in which the pipeline ran, with its results pushed to the DVC remote.
        team: addresses and passwords.
        table: what ``danceflow run`` printed.
        said: all that the command said, on both streams.
    """

    checkout: Checkout
    team: Team
    table: str
    said: str
