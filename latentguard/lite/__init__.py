"""The layers of a guard in numpy, for where PyTorch is not installed. Nothing here, or imported from here, needs it."""
