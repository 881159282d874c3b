"""The student as a package, in the model registry, and behind a server."""
