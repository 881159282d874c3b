"""What is frozen beside the network: codecs and encoders."""
