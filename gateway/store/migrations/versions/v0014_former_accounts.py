"""Which accounts a node had: it is believed about them and its own, and about nobody else's.

Revision: 0014
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision: str | None = "0013"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.create_table(
        "former_accounts",
        sa.Column("node_id", sa.Integer(), nullable=False),
        sa.Column("account_id", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["node_id"], ["nodes.id"], name="fk_former_accounts_node_id_nodes"),
        sa.PrimaryKeyConstraint("node_id", "account_id", name="pk_former_accounts"),
    )
    op.create_index("ix_former_accounts_account_id", "former_accounts", ["account_id"])
    op.execute(
        "INSERT INTO former_accounts (node_id, account_id) "
        "SELECT epochs.node_id, usage.account_id FROM usage JOIN epochs ON epochs.id = usage.epoch_id "
        "UNION SELECT node_id, CAST(key AS bigint) FROM tombstones WHERE kind = 'account'"
    )
