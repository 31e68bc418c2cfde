"""The nouns of Muster and their rules: machines, tokens, jobs, events, settings, errors."""
