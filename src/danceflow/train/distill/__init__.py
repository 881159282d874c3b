"""Stage ``distill``: one student from several teachers."""
