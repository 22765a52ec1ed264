"""Servers that are on their way from one node to another.

Revision: 0011
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision: str | None = "0010"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.add_column("servers", sa.Column("leaving", sa.Integer()))
    op.add_column("servers", sa.Column("left_at", sa.BigInteger(), nullable=False, server_default=sa.text("0")))
