"""Plots as SVG for pages: text stays text, colours follow the page, nothing in them is loaded from anywhere."""
