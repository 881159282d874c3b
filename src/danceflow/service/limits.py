"""What a request may ask for, and how its refusal is told."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Limits:
    """What one request, and all that wait, may cost.

    Attributes:
        rows: pictures of one request.
        steps: solver steps.
        body: bytes of a request's body.
        pixels: width times height of a picture that is sent.
        prompt: characters of a prompt.
        queue: pictures that wait, and requests that are worked on, over all clients.
        body_s: seconds in which a body must have come.
    """

    rows: int = 16
    steps: int = 100
    body: int = 16 << 20
    pixels: int = 1 << 24
    prompt: int = 2000
    queue: int = 64
    body_s: float = 30.0


@dataclass
class RequestError(Exception):
    """A request that is not answered with pictures.

    Attributes:
        status: HTTP's number of it.
        reason: one sentence for a person.
        headers: of the answer.
    """

    status: int
    reason: str
    headers: Mapping[str, str] = field(default_factory=dict)
