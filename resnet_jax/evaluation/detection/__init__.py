"""Figures of detection: VOC's, COCO's and ImageNet's localisation error, of plain arrays; tables and pictures."""
