"""Screening files of prompts, of any size: rows in, verdict rows out, streamed.

Into one file or onto the terminal here; into a folder, part by part, in :mod:`latentguard.screening.folder`; and with
workers, on one machine or many, in :mod:`latentguard.integrations.ray`.
"""

from latentguard.screening.files import print_verdicts, screen_file
from latentguard.screening.options import ScreeningOptions
from latentguard.screening.summary import ScreeningSummary

__all__ = ["ScreeningOptions", "ScreeningSummary", "print_verdicts", "screen_file"]
