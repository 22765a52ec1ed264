"""Where the accounts of a server may go. Servers that are there get what new ones get: the internet.

Revision: 0004
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision: str | None = "0003"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.add_column("servers", sa.Column("reach", sa.Text(), nullable=False, server_default="internet"))
