"""Text, tables and images as the tensors that models are calibrated and judged on."""
