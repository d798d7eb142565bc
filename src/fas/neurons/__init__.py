"""Spiking neuron models: dynamics only, no modules and no parameters."""
