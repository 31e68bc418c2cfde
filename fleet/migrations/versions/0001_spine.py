"""The spine: machines, tokens, jobs, events"""

import sqlalchemy as sa
from alembic import op

import fleet.tables

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "machines",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("state", sa.String(length=20), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("address", sa.String(length=45), nullable=True),
        sa.Column("mac", sa.String(length=17), nullable=True),
        sa.Column("boot_id", sa.String(length=36), nullable=True),
        sa.Column("ssh_host_keys", sa.JSON(), nullable=True),
        sa.Column("hardware", sa.JSON(), nullable=True),
        sa.Column("created_at", fleet.tables.UtcDateTime(timezone=True), nullable=False),
        sa.Column("updated_at", fleet.tables.UtcDateTime(timezone=True), nullable=False),
        sa.Column("ready_at", fleet.tables.UtcDateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    with op.batch_alter_table("machines", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_machines_state"), ["state"], unique=False)
        batch_op.create_index(
            "uq_machines_living_name",
            ["name"],
            unique=True,
            sqlite_where=sa.text("state != 'retired'"),
            postgresql_where=sa.text("state != 'retired'"),
        )

    op.create_table(
        "jobs",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("machine_id", sa.String(length=36), nullable=False),
        sa.Column("kind", sa.String(length=40), nullable=False),
        sa.Column("state", sa.String(length=20), nullable=False),
        sa.Column("boot_id", sa.String(length=36), nullable=True),
        sa.Column("flow_run_id", sa.String(length=36), nullable=True),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("created_at", fleet.tables.UtcDateTime(timezone=True), nullable=False),
        sa.Column("submitted_at", fleet.tables.UtcDateTime(timezone=True), nullable=True),
        sa.Column("started_at", fleet.tables.UtcDateTime(timezone=True), nullable=True),
        sa.Column("finished_at", fleet.tables.UtcDateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["machine_id"],
            ["machines.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
    )
    with op.batch_alter_table("jobs", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_jobs_flow_run_id"), ["flow_run_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_jobs_machine_id"), ["machine_id"], unique=False)
        batch_op.create_index("ix_jobs_state_created", ["state", "created_at"], unique=False)
        batch_op.create_index(
            "uq_jobs_machine_boot", ["machine_id", "kind", "boot_id"], unique=True
        )

    op.create_table(
        "tokens",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("machine_id", sa.String(length=36), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("ssh_host_keys", sa.JSON(), nullable=True),
        sa.Column("created_at", fleet.tables.UtcDateTime(timezone=True), nullable=False),
        sa.Column("expires_at", fleet.tables.UtcDateTime(timezone=True), nullable=False),
        sa.Column("spent_at", fleet.tables.UtcDateTime(timezone=True), nullable=True),
        sa.Column("revoked_at", fleet.tables.UtcDateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["machine_id"],
            ["machines.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("digest"),
    )
    with op.batch_alter_table("tokens", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_tokens_machine_id"), ["machine_id"], unique=False)

    op.create_table(
        "events",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("at", fleet.tables.UtcDateTime(timezone=True), nullable=False),
        sa.Column("machine_id", sa.String(length=36), nullable=True),
        sa.Column("job_id", sa.String(length=36), nullable=True),
        sa.Column("kind", sa.String(length=40), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("data", sa.JSON(), nullable=True),
        sa.ForeignKeyConstraint(
            ["job_id"],
            ["jobs.id"],
        ),
        sa.ForeignKeyConstraint(
            ["machine_id"],
            ["machines.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
    )
    with op.batch_alter_table("events", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_events_machine_id"), ["machine_id"], unique=False)


def downgrade() -> None:
    with op.batch_alter_table("events", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_events_machine_id"))

    op.drop_table("events")
    with op.batch_alter_table("tokens", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_tokens_machine_id"))

    op.drop_table("tokens")
    with op.batch_alter_table("jobs", schema=None) as batch_op:
        batch_op.drop_index("uq_jobs_machine_boot")
        batch_op.drop_index("ix_jobs_state_created")
        batch_op.drop_index(batch_op.f("ix_jobs_machine_id"))
        batch_op.drop_index(batch_op.f("ix_jobs_flow_run_id"))

    op.drop_table("jobs")
    with op.batch_alter_table("machines", schema=None) as batch_op:
        batch_op.drop_index(
            "uq_machines_living_name",
            sqlite_where=sa.text("state != 'retired'"),
            postgresql_where=sa.text("state != 'retired'"),
        )
        batch_op.drop_index(batch_op.f("ix_machines_state"))

    op.drop_table("machines")
