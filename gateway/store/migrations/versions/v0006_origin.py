"""A mark for each revision of a node, and room for an operator's word about what a node holds.

The identity of the database is a setting; it is made when the database is opened (gateway/store/settings.py).

Revision: 0006
"""

from __future__ import annotations

import secrets

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision: str | None = "0005"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.add_column("nodes", sa.Column("replaces", sa.Text(), nullable=False, server_default=sa.text("''")))
    revisions = op.create_table(
        "revisions",
        sa.Column("node_id", sa.Integer(), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("mark", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["node_id"], ["nodes.id"], name="fk_revisions_node_id_nodes"),
        sa.PrimaryKeyConstraint("node_id", "revision", name="pk_revisions"),
    )
    nodes = op.get_bind().execute(sa.text("SELECT id, revision FROM nodes")).all()
    if nodes:
        rows = [{"node_id": n.id, "revision": n.revision, "mark": secrets.randbits(62) + 1} for n in nodes]
        op.bulk_insert(revisions, rows)
