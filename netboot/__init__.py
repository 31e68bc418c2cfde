"""What a machine talks to before it is a member, and the outbox that hands jobs to Prefect."""
