"""The ranks of a job: their launcher, collective calls, and timeouts."""
