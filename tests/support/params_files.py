"""Params files that tests change, write and see refused."""

from typing import Any

import pytest
import yaml

from danceflow.errors import ConfigError
from danceflow.params.read import override, parse_params, read_assignments


def dump_yaml(data: Any) -> str:
    """Return plain data as YAML text, keys in their order."""
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=100)


def changed(data: dict[str, Any], *assignments: str) -> dict[str, Any]:
    """Return a copy of a params file's data with ``section.name=value`` put into it."""
    return override(data, read_assignments(assignments))


def refusal(data: Any) -> str:
    """Return what is said of the data of a params file that is refused."""
    with pytest.raises(ConfigError) as caught:
        parse_params(data, "params.yaml")
    assert caught.value.exit_code == 2
    return str(caught.value)
