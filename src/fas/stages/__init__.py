"""What changes the parameters of a converted model."""
