"""Adapters of array frameworks, one a file; none is imported before its arrays are in use."""
