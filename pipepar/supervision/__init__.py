"""How a job ends: failures, the watchdog, stop signals."""
