"""The columns of users' tables: what they can hold, and how released data sets name them.

A params file names a preset, so DVC sees its name alone: this file is part of the key of the stage
that reads tables.
"""

from collections.abc import Mapping

COLUMN_NAMES = (
    "uid",
    "task",
    "category",
    "prompt",
    "source",
    "source_2",
    "source_3",
    "target",
    "split",
    "variant",
    "score",
    "spec",
)
"""What a column of a user's table can hold."""

SOURCE_COLUMNS = ("source", "source_2", "source_3")
"""The pictures of an edit, in order; a row may have none of the further ones."""

IMAGE_COLUMNS = ("image", "image_2", "image_3")
"""The same, as the served model calls them."""

COLUMN_PRESETS: Mapping[str, Mapping[str, str]] = {
    "danceopd": {
        "uid": "uid",
        "task": "task",
        "category": "raw_task",
        "prompt": "prompt",
        "source": "source_image",
        "target": "target_image",
    },
    "omniedit": {
        "uid": "omni_edit_id",
        "task": "task",
        "prompt": "edited_prompt_list",
        "source": "src_img",
        "target": "edited_img",
        "score": "o_score",
    },
}
"""The columns of released data sets, by what they hold."""
