"""Stage ``teachers``: the frozen teachers are trained and scored."""
