"""LoRA adapters: on a network, and as files of every writer."""
