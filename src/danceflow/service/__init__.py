"""The student behind HTTP: requests in, pictures out, until the process is told to stop."""
