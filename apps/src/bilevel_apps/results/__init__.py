"""Recorded results: JSON documents that commands write, and the tables that are made of them.

A record is the score of a run on episodes (`score.py`) or the document of a table or figure that
`bilevel-paper` wrote. `python -m bilevel_apps.results --help` says how to add and to print them.
"""

from bilevel_apps.results.records import ItemRecord, ScoreRecord, read_records
from bilevel_apps.results.tables import BEGIN, END, results_page, with_table

__all__ = [
    "BEGIN",
    "END",
    "ItemRecord",
    "ScoreRecord",
    "read_records",
    "results_page",
    "with_table",
]
