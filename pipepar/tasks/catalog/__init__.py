"""The tasks, one file each. The file has the name of the task, with _ for -."""
