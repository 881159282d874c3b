"""A vision model that scores."""
