"""The rows and tables of a report, read from the directory of a sweep."""
