"""One lifecycle verb per file, read aloud as its runbook."""
