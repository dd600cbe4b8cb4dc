"""Recorded results: JSON documents that commands write, and the tables that are made of them.

A record is the score of a run on episodes (`score.py`) or the document of a table or figure that
`bilevel-paper` wrote. `python -m tools.results --help` says how to add and to print them.
"""

from tools.results.records import ItemRecord, ScoreRecord, read_records
from tools.results.tables import BEGIN, END, results_page, with_table

__all__ = [
    "BEGIN",
    "END",
    "ItemRecord",
    "ScoreRecord",
    "read_records",
    "results_page",
    "with_table",
]
