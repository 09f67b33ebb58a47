"""Trackers: default plugins that listen to the life of a sweep. The directory is the truth, a tracker is a view."""
