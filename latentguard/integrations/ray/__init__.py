"""Screening on Ray Data: the same parts, rows and manifest as without it, made by workers on one machine or many."""
