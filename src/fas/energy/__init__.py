"""Energy: operations that really happened, and what they would cost."""
