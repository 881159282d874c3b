"""danceflow: several flow-matching teachers become one student, as a workflow."""
