"""Preflight checks of the ranks, hosts and links of a job."""
