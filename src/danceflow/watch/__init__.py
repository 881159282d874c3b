"""Are served requests still like the training? Statistics on samples, a verdict, a page."""
