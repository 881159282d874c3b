"""Prefect's own command line, run as ``python -m flows.deploy_command``, with closed deployments.

Prefect's schema of a flow names the parameters and leaves others open: a run with a misspelt one is
made, and fails when its turn has come. Here the server refuses it, from the deployment's first
moment on.
"""

from collections.abc import Callable
from typing import Any

from prefect.utilities.callables import ParameterSchema, parameter_schema


class _Closed(ParameterSchema):
    """The schema of a flow's parameters that says whether there may be others."""

    additionalProperties: bool  # noqa: N815, JSON schema's name


def closed(schema: ParameterSchema) -> ParameterSchema:
    """Return the same schema of a flow's parameters, with which a server refuses all others."""
    return _Closed(**schema.model_dump(exclude_unset=True), additionalProperties=False)


def main() -> None:
    """Run Prefect's command; the arguments are those behind ``prefect``."""
    from prefect.cli import app
    from prefect.cli.deploy import _core

    def of(flow: Callable[..., Any]) -> ParameterSchema:
        return closed(parameter_schema(flow))

    core: Any = _core
    core.parameter_schema = of
    app()


if __name__ == "__main__":
    main()
