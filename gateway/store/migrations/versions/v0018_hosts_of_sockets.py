"""Which host the socket of a node is on: a gateway on another one has something else at that path.

Revision: 0018
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision: str | None = "0017"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.add_column("nodes", sa.Column("host", sa.Text(), nullable=False, server_default=sa.text("''")))
