"""The arithmetic of neurons and of the layers after them: readable loops, and fast twins that are held to them."""
