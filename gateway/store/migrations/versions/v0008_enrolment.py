"""Authorities, join tokens, and the names of nodes in their certificates.

Revision: 0008
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision: str | None = "0007"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.add_column("nodes", sa.Column("tls_name", sa.Text(), nullable=False, server_default=sa.text("''")))
    op.create_table(
        "authorities",
        sa.Column("pin", sa.Text(), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.Column("created", sa.BigInteger(), nullable=False),
        sa.Column("signs", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("pin", name="pk_authorities"),
    )
    op.create_table(
        "join_tokens",
        sa.Column("node_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("public", sa.LargeBinary(), nullable=False),
        sa.Column("pin", sa.Text(), nullable=False),
        sa.Column("tls_name", sa.Text(), nullable=False),
        sa.Column("expires", sa.BigInteger(), nullable=False),
        sa.Column("proof", sa.LargeBinary(), nullable=False),
        sa.Column("used_by", sa.LargeBinary(), nullable=True),
        sa.ForeignKeyConstraint(["node_id"], ["nodes.id"], name="fk_join_tokens_node_id_nodes"),
        sa.PrimaryKeyConstraint("node_id", name="pk_join_tokens"),
        sa.UniqueConstraint("public", name="uq_join_tokens_public"),
    )
