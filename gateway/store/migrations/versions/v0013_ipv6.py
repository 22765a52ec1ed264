"""A second family inside the tunnels. Servers that are there have none.

Revision: 0013
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision: str | None = "0012"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    for name in ("address_ipv6", "dns_1_ipv6", "dns_2_ipv6"):
        op.add_column("servers", sa.Column(name, sa.Text()))
    op.add_column("servers", sa.Column("nat_ipv6", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("accounts", sa.Column("address_ipv6", sa.Text()))
    there = sa.text("address_ipv6 IS NOT NULL")
    op.create_index(
        "ix_accounts_address_ipv6",
        "accounts",
        ["address_ipv6"],
        unique=True,
        sqlite_where=there,
        postgresql_where=there,
    )
