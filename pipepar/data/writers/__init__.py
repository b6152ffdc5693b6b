"""Rows -> files, and the journal from which a job resumes."""
