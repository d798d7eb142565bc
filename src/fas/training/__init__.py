"""How training runs: the trainer, its losses, its data, its run directory."""
