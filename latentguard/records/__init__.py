"""Prompt and concept files in, result rows out, streamed.

Everything that a file can have wrong is a `DataError` of one line with the file, the row and the field in it, and never
the text of a prompt.
"""

from latentguard.records.concepts import ConceptEntry, read_concepts
from latentguard.records.faults import MAX_PROMPT_CHARS
from latentguard.records.prompts import PromptFile, PromptRow, check_prompts_file, parquet_types, read_prompts
from latentguard.records.writing import Columns, RowWriter, arrow_array, arrow_schema, check_output, open_writer

__all__ = [
    "MAX_PROMPT_CHARS",
    "Columns",
    "ConceptEntry",
    "PromptFile",
    "PromptRow",
    "RowWriter",
    "arrow_array",
    "arrow_schema",
    "check_output",
    "check_prompts_file",
    "open_writer",
    "parquet_types",
    "read_concepts",
    "read_prompts",
]
