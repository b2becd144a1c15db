"""Screen a file of prompts: ``python inference.py --file_path FILE [--output OUT]``; ``--help`` tells the rest."""

import sys

from latentguard.cli import main

if __name__ == "__main__":
    sys.exit(main(["screen", *sys.argv[1:]], prog="inference.py"))
