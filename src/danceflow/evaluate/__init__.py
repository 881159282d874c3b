"""What a field is worth: evaluators, the report and the promotion gate."""
