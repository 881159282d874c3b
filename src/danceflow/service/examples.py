"""Examples and schemas that the service's description of itself (OpenAPI) shows."""

from typing import Any

PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"
)
"""A PNG file of one red pixel."""

GENERATE: dict[str, Any] = {
    "one": {"summary": "One picture", "value": {"prompts": ["a red circle"]}},
    "several": {
        "summary": "Several pictures, with every field",
        "value": {
            "prompts": ["a red circle", "a blue square left of a ring"],
            "seed": 7,
            "steps": 8,
            "guidance": 1.0,
            "size": "32x32",
        },
    },
}

EDIT: dict[str, Any] = {
    "one": {
        "summary": "One picture, changed",
        "value": {"prompts": ["make it grayscale"], "images": [PIXEL]},
    },
    "several": {
        "summary": "One picture, changed in two ways",
        "value": {
            "prompts": ["make it grayscale", "invert the colors"],
            "images": [PIXEL],
            "seed": 7,
        },
    },
}

ANSWER: dict[str, Any] = {
    "model": {"name": "danceflow-scenes", "version": 3, "digest": "9f2c..."},
    "seed": 7,
    "steps": 8,
    "guidance": 1.0,
    "images": [{"image": PIXEL, "size": "32x32", "notes": []}],
}


def form_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a form with the fields of a JSON object; pictures are files there."""
    properties = dict(schema["properties"])
    if "images" in properties:
        files = {"type": "string", "format": "binary"}
        properties["images"] = {**properties["images"], "items": files}
    return {**schema, "properties": properties}
