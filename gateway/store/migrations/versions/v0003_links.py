"""One-time links are leased while they are opened, and bound to their account. (The digests become keyed ones when the
key is at hand: gateway/store/settings.py.)

Revision: 0003
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision: str | None = "0002"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.add_column("one_time_links", sa.Column("leased", sa.BigInteger(), nullable=True))
    op.add_column("one_time_links", sa.Column("proof", sa.LargeBinary(), nullable=True))
