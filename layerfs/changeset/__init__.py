"""Changesets: the difference between two trees as an ordered stream of changes."""
