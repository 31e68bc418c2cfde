"""`./muster`: the commands for people, and the supervisor behind `up`."""
