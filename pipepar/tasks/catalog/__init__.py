"""The tasks, one file each: the name of the file is the name of the task, with _ for -."""
