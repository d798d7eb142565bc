"""Finding the places that spike and exchanging the modules there, for any architecture."""
