"""Figures, not verdicts: each module measures one thing and prints what it saw."""
