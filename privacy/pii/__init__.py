"""Personal data in prompts, logs and datasets: found and replaced with Presidio.

scrubber = Scrubber()
scrubber.scrub("portrait of Anna Schmidt, call +49 30 901820").text
"""

from privacy.pii.actions import KeyedHash, Mask, Replace, Tokens, restore
from privacy.pii.finder import NAME_TYPES, PATTERN_TYPES, TYPES, Finding, PiiFinder
from privacy.pii.scrubber import Scrubbed, Scrubber

__all__ = [
    "NAME_TYPES",
    "PATTERN_TYPES",
    "TYPES",
    "Finding",
    "KeyedHash",
    "Mask",
    "PiiFinder",
    "Replace",
    "Scrubbed",
    "Scrubber",
    "Tokens",
    "restore",
]
