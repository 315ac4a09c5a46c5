"""What each command does once its words are understood: one file a group of commands. Each returns the exit code."""
