"""The output of a job: claimed, checked, written and resumed."""
