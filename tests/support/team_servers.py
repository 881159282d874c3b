"""What the tests of a team's servers share."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx
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


def ask(team: Team, path: str, body: Mapping[str, Any]) -> Any:
    """What Prefect's API answers to a POST with the team's login."""
    user, _, password = team.environment["PREFECT_API_AUTH_STRING"].partition(":")
    address = f"{team.environment['PREFECT_API_URL']}/{path}"
    answer = httpx.post(address, json=dict(body), auth=(user, password), timeout=60)
    answer.raise_for_status()
    return answer.json()
