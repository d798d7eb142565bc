"""How fast a spiking network runs, and how much memory it takes, beside the dense model and other simulators."""
