"""Costs and splits that other systems published, against the splits found here."""
