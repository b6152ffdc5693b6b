"""The end of a job: failures, the watchdog and stop signals."""
