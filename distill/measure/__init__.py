"""Measuring, a stage of the pipeline: writes measurements/SECTION.json, which the report renders."""
