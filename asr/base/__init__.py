"""The frozen base: resolve a name, load it, identify it, render for it, split its forward pass."""
