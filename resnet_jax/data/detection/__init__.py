"""Photographs with boxes as a data set, for detection."""
