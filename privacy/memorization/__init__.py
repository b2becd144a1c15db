"""Does a model remember private data that it was fine-tuned on? See docs/memorization.md."""
