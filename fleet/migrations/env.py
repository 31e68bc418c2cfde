"""Alembic's entry: migrates over the connection that `fleet.registry` hands in."""

from alembic import context

from fleet.tables import Base

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=Base.metadata,
    render_as_batch=connection.dialect.name == "sqlite",
)
with context.begin_transaction():
    context.run_migrations()
