"""Train a mapping layer: ``python train.py --data PATH... --output DIR``; ``--help`` tells the rest."""

import sys

from latentguard.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]], prog="train.py"))
