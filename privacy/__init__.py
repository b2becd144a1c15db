"""The privacy stage around text-to-image generation. It knows nothing of ``latentguard``."""
