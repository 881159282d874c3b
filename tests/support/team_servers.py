"""What the tests of a team's servers share."""

from dataclasses import dataclass

from checkout import Checkout

from flows.team.settings import Team

PLANTED = {
    "JUDGE_KEY": "jk-Planted4Zq7Xw9Kv2Jb8Yf",
    "WEBHOOK_SECRET": "wh-Planted5Rt6Ns3Lm9Qc1Hd",
}
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
