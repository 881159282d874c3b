"""Write the software bill of materials of the pins: ``python deploy/sbom.py FILE``.

It is the same for the same pins, and fits CycloneDX's schema. CycloneDX's own program is not taken:
what it requires beside the library makes every import of jsonschema, and so every start of Prefect,
a processor second longer.
"""

import sys
import tomllib
from pathlib import Path

from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL

ROOT = Path(__file__).parents[1]


def bill() -> str:
    """Return the bill as JSON; ValueError if it does not fit the schema."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    whole = Component(
        bom_ref=project["name"],
        type=ComponentType.APPLICATION,
        name=project["name"],
        version=project["version"],
        description=project["description"],
    )
    bom = Bom()
    bom.metadata.component = whole
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        name, _, pin = line.partition("==")
        url = PackageURL("pypi", name=name, version=pin)
        part = Component(bom_ref=line, type=ComponentType.LIBRARY, name=name, version=pin, purl=url)
        bom.components.add(part)
    bom.register_dependency(whole, bom.components)
    # A number that is drawn and a time would make every bill another one.
    bom.serial_number = None  # type: ignore[assignment]
    bom.metadata.timestamp = None  # type: ignore[assignment]
    text = JsonV1Dot6(bom).output_as_string(indent=2)
    wrong = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    if wrong is not None:
        raise ValueError(f"the bill does not fit CycloneDX's schema: {wrong.data}")
    return text + "\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(bill(), encoding="utf-8")
