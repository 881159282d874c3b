"""How MLflow's client logs in at a server whose address came with a name and a password.

MLflow asks a provider for the login of every request. This one knows the logins that this process
has read, by server; the environment, which every child inherits, holds the provider's name alone.
"""

import os
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from danceflow.errors import TrackingError
from danceflow.ops.tracking.address import Login, without_login

if TYPE_CHECKING:
    from requests import PreparedRequest

_PROVIDER = "danceflow"
_VARIABLE = "MLFLOW_TRACKING_AUTH"
_LOGINS: dict[str, Login] = {}


def use_login(address: str, login: Login) -> None:
    """Let MLflow's client log in at a server, in this process.

    Args:
        address: the server's, without the login.
        login: what it was given with.

    Raises:
        TrackingError: another provider of logins is configured.
    """
    other = os.environ.get(_VARIABLE)
    if other not in (None, "", _PROVIDER):
        raise TrackingError(
            f"MLflow at {without_login(address)}: there are two logins, that of the address and "
            f"{_VARIABLE}={other}; take one of them away"
        )
    _register()
    _LOGINS[_place(address)] = login
    os.environ[_VARIABLE] = _PROVIDER


class _Basic:
    """Adds the login of a request's server, and none for any other."""

    def __call__(self, request: "PreparedRequest") -> "PreparedRequest":
        from requests.auth import HTTPBasicAuth

        login = _LOGINS.get(_place(str(request.url)))
        if login is None:
            return request
        basic = HTTPBasicAuth(login.user.encode(), login.password.encode())
        return basic(request)


def _place(address: str) -> str:
    parts = urlsplit(address)
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    return f"{parts.scheme}://{parts.hostname}:{port}"


def _register() -> None:
    """Make the provider known to MLflow, once."""
    from mlflow.tracking.request_auth import registry
    from mlflow.tracking.request_auth.abstract_request_auth_provider import RequestAuthProvider

    providers = registry._request_auth_provider_registry
    if any(provider.get_name() == _PROVIDER for provider in providers):
        return

    class Provider(RequestAuthProvider):
        def get_name(self) -> str:
            return _PROVIDER

        def get_auth(self) -> Any:
            return _Basic()

    providers.register(Provider)
