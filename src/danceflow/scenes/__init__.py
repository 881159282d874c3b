"""The embedded world of the default recipe: exact scenes, prompts, edits, parser and scores."""
