"""Columns that are computed from finished pictures: hashes, classifiers, scorers of packages."""
