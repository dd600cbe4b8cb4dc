"""Adapters of array frameworks, one per file; none is imported before its arrays are in use."""
