"""One external system per file: plain functions that do the work and return frozen models."""
