"""Command line, stages, pipeline and report: the only package that starts anything."""
