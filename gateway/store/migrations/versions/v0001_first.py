"""The first schema.

Revision: 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision: str | None = None
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    _installation()
    _servers()
    _accounts()
    _usage()
    _access()
    locks = sa.table("locks", sa.column("name", sa.Text))
    op.bulk_insert(locks, [{"name": "installation"}, {"name": "numbers"}])
    free_ranges = sa.table("free_ranges", sa.column("scope", sa.Text), sa.column("lo"), sa.column("hi"))
    # The numbers of generated names, `peer_N` and `user_N`.
    op.bulk_insert(free_ranges, [{"scope": scope, "lo": 1, "hi": 999_999_999} for scope in ("peer", "user")])


def _installation() -> None:
    op.create_table(
        "locks", sa.Column("name", sa.Text(), nullable=False), sa.PrimaryKeyConstraint("name", name="pk_locks")
    )
    op.create_table(
        "settings",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_settings"),
    )
    op.create_table(
        "nodes",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("endpoint", sa.Text(), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("epoch", sa.Text(), nullable=False),
        sa.Column("acknowledged", sa.BigInteger(), nullable=False),
        sa.Column("horizon", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_nodes"),
        sa.UniqueConstraint("name", name="uq_nodes_name"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "tombstones",
        sa.Column("node_id", sa.Integer(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["node_id"], ["nodes.id"], name="fk_tombstones_node_id_nodes"),
        sa.PrimaryKeyConstraint("node_id", "kind", "key", name="pk_tombstones"),
    )
    op.create_index("ix_tombstones_node_id_revision", "tombstones", ["node_id", "revision"], unique=False)
    op.create_table(
        "free_ranges",
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("lo", sa.BigInteger(), nullable=False),
        sa.Column("hi", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("scope", "lo", name="pk_free_ranges"),
    )


def _servers() -> None:
    op.create_table(
        "servers",
        sa.Column("id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("node_id", sa.Integer(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("interface", sa.Text(), nullable=False),
        sa.Column("private_key", sa.LargeBinary(), nullable=False),
        sa.Column("public_key", sa.Text(), nullable=False),
        sa.Column("listen_port", sa.Integer(), nullable=False),
        sa.Column("address", sa.Text(), nullable=False),
        sa.Column("external_ip", sa.Text(), nullable=True),
        sa.Column("endpoint", sa.Text(), nullable=False),
        sa.Column("dns_1", sa.Text(), nullable=True),
        sa.Column("dns_2", sa.Text(), nullable=True),
        sa.Column("mtu", sa.Integer(), nullable=False),
        sa.Column("keep_alive", sa.Integer(), nullable=False),
        sa.Column("allowed_ips", sa.Text(), nullable=False),
        sa.Column("internal_traffic", sa.Boolean(), nullable=False),
        sa.Column("download", sa.Integer(), nullable=False),
        sa.Column("upload", sa.Integer(), nullable=False),
        sa.Column("ikev2", sa.Boolean(), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["node_id"], ["nodes.id"], name="fk_servers_node_id_nodes"),
        sa.PrimaryKeyConstraint("id", name="pk_servers"),
        sa.UniqueConstraint("name", name="uq_servers_name"),
        sa.UniqueConstraint("node_id", "interface", name="uq_servers_node_id_interface"),
        sa.UniqueConstraint("node_id", "listen_port", name="uq_servers_node_id_listen_port"),
    )


def _accounts() -> None:
    op.create_table(
        "accounts",
        sa.Column("id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("server_id", sa.BigInteger(), nullable=False),
        sa.Column("node_id", sa.Integer(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("username", sa.Text(), nullable=False),
        sa.Column("password", sa.LargeBinary(), nullable=False),
        sa.Column("address", sa.BigInteger(), nullable=False),
        sa.Column("private_key", sa.LargeBinary(), nullable=True),
        sa.Column("public_key", sa.Text(), nullable=False),
        sa.Column("mark", sa.Integer(), nullable=False),
        sa.Column("download", sa.Integer(), nullable=False),
        sa.Column("upload", sa.Integer(), nullable=False),
        sa.Column("enabled", sa.Boolean(), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["node_id"], ["nodes.id"], name="fk_accounts_node_id_nodes"),
        sa.ForeignKeyConstraint(["server_id"], ["servers.id"], name="fk_accounts_server_id_servers"),
        sa.PrimaryKeyConstraint("id", name="pk_accounts"),
        sa.UniqueConstraint("address", name="uq_accounts_address"),
        sa.UniqueConstraint("name", name="uq_accounts_name"),
        sa.UniqueConstraint("node_id", "mark", name="uq_accounts_node_id_mark"),
        sa.UniqueConstraint("server_id", "public_key", name="uq_accounts_server_id_public_key"),
        sa.UniqueConstraint("username", name="uq_accounts_username"),
    )
    op.create_index("ix_accounts_node_id_revision", "accounts", ["node_id", "revision"], unique=False)


def _usage() -> None:
    op.create_table(
        "epochs",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("node_id", sa.Integer(), nullable=False),
        sa.Column("epoch", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["node_id"], ["nodes.id"], name="fk_epochs_node_id_nodes"),
        sa.PrimaryKeyConstraint("id", name="pk_epochs"),
        sa.UniqueConstraint("node_id", "epoch", name="uq_epochs_node_id_epoch"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "cursors",
        sa.Column("node_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("epoch", sa.Text(), nullable=False),
        sa.Column("cursor", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["node_id"], ["nodes.id"], name="fk_cursors_node_id_nodes"),
        sa.PrimaryKeyConstraint("node_id", name="pk_cursors"),
    )
    op.create_table(
        "usage",
        sa.Column("account_id", sa.BigInteger(), nullable=False),
        sa.Column("day", sa.Integer(), nullable=False),
        sa.Column("epoch_id", sa.Integer(), nullable=False),
        sa.Column("download", sa.BigInteger(), nullable=False),
        sa.Column("upload", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("account_id", "day", "epoch_id", name="pk_usage"),
    )
    op.create_index("ix_usage_day", "usage", ["day"], unique=False)


def _access() -> None:
    op.create_table(
        "one_time_links",
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("account_id", sa.BigInteger(), nullable=False),
        sa.Column("created", sa.BigInteger(), nullable=False),
        sa.Column("expires", sa.BigInteger(), nullable=False),
        sa.Column("used", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(
            ["account_id"], ["accounts.id"], name="fk_one_time_links_account_id_accounts", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("digest", name="pk_one_time_links"),
    )
    op.create_index("ix_one_time_links_account_id", "one_time_links", ["account_id"], unique=False)
    op.create_index("ix_one_time_links_expires", "one_time_links", ["expires"], unique=False)
    op.create_table(
        "access_keys",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("networks", sa.Text(), nullable=False),
        sa.Column("created", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_access_keys"),
        sa.UniqueConstraint("digest", name="uq_access_keys_digest"),
    )
