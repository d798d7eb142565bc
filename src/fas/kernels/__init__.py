"""The arithmetic of neurons and of the layers behind them: readable loops, and fast twins that are held to them."""
