"""What fits into the tunnels of a node, as its agent says.

Revision: 0007
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision: str | None = "0006"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.add_column("nodes", sa.Column("tunnel_mtu", sa.Integer(), nullable=False, server_default=sa.text("0")))
