"""The output of a job: claimed before the work, written, checked, and resumed."""
