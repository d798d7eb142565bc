"""Running a converted model over time behind the interface of the model it was."""
