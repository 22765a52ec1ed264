"""What the database looks like. The migrations must end exactly here (a test compares them).

Uniqueness is the database's promise, stated here; what is looked up before only decides which error is told. (Networks
that overlap are the one thing that no constraint can refuse: see gateway/servers.py.) Times are Unix seconds, days are
numbers like 20260131, IPv4 addresses are integers: both databases compare and index those alike.

Ids of servers and accounts are random (gateway/allocate.py), so they are known before the row exists (a sealed value
is bound to its row) and are never used again.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    UniqueConstraint,
    false,
    text,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# Rows that exist to be locked, where no row of the thing itself is there yet; see transaction.py.
locks = Table("locks", metadata, Column("name", Text, primary_key=True))

settings = Table(
    "settings",
    metadata,
    Column("name", Text, primary_key=True),
    Column("value", Text, nullable=False),
)

nodes = Table(
    "nodes",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("target", Text, nullable=False),
    Column("endpoint", Text, nullable=False),
    Column("revision", BigInteger, nullable=False),
    Column("epoch", Text, nullable=False),
    Column("acknowledged", BigInteger, nullable=False),
    # Below it nothing is known about deletes: an agent that is older needs a snapshot.
    Column("horizon", BigInteger, nullable=False),
    Column("tunnel_mtu", Integer, nullable=False, server_default=text("0")),  # bytes, as its agent last said
    Column("replaces", Text, nullable=False, server_default=text("''")),  # an operator's word: see gateway/origin.py
    Column("tls_name", Text, nullable=False, server_default=text("''")),  # "" = it was never enrolled
    Column("drained", Boolean, nullable=False, server_default=false()),  # it takes no new servers
    Column("host", Text, nullable=False, server_default=text("''")),  # that its socket is on; "" = unknown
    sqlite_autoincrement=True,  # an id of a removed node is not used again
)

# Which authorities there are, key and certificate as one sealed text. One signs; the others are trusted besides.
authorities = Table(
    "authorities",
    metadata,
    Column("pin", Text, primary_key=True),  # SHA-256 of the public key, in hex
    Column("sealed", LargeBinary, nullable=False),
    Column("created", BigInteger, nullable=False),
    Column("signs", Boolean, nullable=False),
)

# At most one for each node: by it a host may become that node, until it expires; with the key that used it, after that.
join_tokens = Table(
    "join_tokens",
    metadata,
    Column("node_id", Integer, ForeignKey("nodes.id"), primary_key=True, autoincrement=False),
    Column("public", LargeBinary, nullable=False, unique=True),  # Ed25519; the other half is the token
    Column("pin", Text, nullable=False),  # of the authority that the token names
    Column("tls_name", Text, nullable=False),  # what the node will be called
    Column("expires", BigInteger, nullable=False),
    Column("proof", LargeBinary, nullable=False),  # that the gateway wrote this row
    Column("used_by", LargeBinary),  # the public key that it is bound to; NULL = nobody has used it
)

# What the installation shows customers of IKEv2; at most one row.
ikev2 = Table(
    "ikev2",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("sealed", LargeBinary, nullable=False),
)

servers = Table(
    "servers",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("node_id", Integer, ForeignKey("nodes.id"), nullable=False),
    Column("name", Text, nullable=False, unique=True),
    Column("interface", Text, nullable=False),
    Column("private_key", LargeBinary, nullable=False),  # sealed
    Column("public_key", Text, nullable=False),
    Column("listen_port", Integer, nullable=False),
    Column("address", Text, nullable=False),  # "10.0.0.1/24"
    Column("external_ip", Text),
    Column("endpoint", Text, nullable=False),
    Column("dns_1", Text),
    Column("dns_2", Text),
    Column("mtu", Integer, nullable=False),
    Column("keep_alive", Integer, nullable=False),
    Column("allowed_ips", Text, nullable=False),
    Column("internal_traffic", Boolean, nullable=False),
    Column("download", Integer, nullable=False),
    Column("upload", Integer, nullable=False),
    Column("ikev2", Boolean, nullable=False),
    Column("revision", BigInteger, nullable=False),
    Column("reach", Text, nullable=False, server_default="internet"),
    # The id of the node that it is on its way from, and the revision of that which lacks it: see moves.py.
    Column("leaving", Integer),
    Column("left_at", BigInteger, nullable=False, server_default=text("0")),
    Column("address_ipv6", Text),  # "fd00::1/64"
    Column("dns_1_ipv6", Text),
    Column("dns_2_ipv6", Text),
    Column("nat_ipv6", Boolean, nullable=False, server_default=false()),
    UniqueConstraint("node_id", "interface"),
    UniqueConstraint("node_id", "listen_port"),
)

accounts = Table(
    "accounts",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("server_id", BigInteger, ForeignKey("servers.id"), nullable=False),
    Column("node_id", Integer, ForeignKey("nodes.id"), nullable=False),
    Column("name", Text, nullable=False, unique=True),
    Column("username", Text, nullable=False, unique=True),
    Column("password", LargeBinary, nullable=False),  # sealed
    Column("address", BigInteger, nullable=False, unique=True),
    Column("private_key", LargeBinary),  # sealed; NULL = the client kept it
    Column("public_key", Text, nullable=False),
    Column("mark", Integer, nullable=False),
    Column("download", Integer, nullable=False),
    Column("upload", Integer, nullable=False),
    Column("enabled", Boolean, nullable=False),
    Column("revision", BigInteger, nullable=False),
    Column("preshared_key", LargeBinary),  # sealed; NULL = it has none
    Column("address_ipv6", Text),  # in its shortest spelling
    UniqueConstraint("node_id", "mark"),
    Index(
        None,
        "address_ipv6",
        unique=True,
        sqlite_where=text("address_ipv6 IS NOT NULL"),
        postgresql_where=text("address_ipv6 IS NOT NULL"),
    ),
    UniqueConstraint("server_id", "public_key"),  # WireGuard has one peer for each key of an interface
    Index(None, "node_id", "revision"),
)

# Random, of each revision that an agent may still hold: tells apart two histories with the same numbers.
revisions = Table(
    "revisions",
    metadata,
    Column("node_id", Integer, ForeignKey("nodes.id"), nullable=False),
    Column("revision", BigInteger, nullable=False),
    Column("mark", BigInteger, nullable=False),
    PrimaryKeyConstraint("node_id", "revision"),
)

# What was deleted and not yet acknowledged by the node.
tombstones = Table(
    "tombstones",
    metadata,
    Column("node_id", Integer, ForeignKey("nodes.id"), nullable=False),
    Column("kind", Text, nullable=False),  # "server" (key: its name) or "account" (key: its id)
    Column("key", Text, nullable=False),
    Column("revision", BigInteger, nullable=False),
    PrimaryKeyConstraint("node_id", "kind", "key"),
    Index(None, "node_id", "revision"),
)

# Free numbers: disjoint ranges that do not touch. Scopes: see ranges.py.
free_ranges = Table(
    "free_ranges",
    metadata,
    Column("scope", Text, nullable=False),
    Column("lo", BigInteger, nullable=False),
    Column("hi", BigInteger, nullable=False),
    PrimaryKeyConstraint("scope", "lo"),
)

# Addresses that were given back lately, in no range yet. Scopes: as above.
resting_numbers = Table(
    "resting_numbers",
    metadata,
    Column("scope", Text, nullable=False),
    Column("number", BigInteger, nullable=False),
    Column("since", BigInteger, nullable=False),
    PrimaryKeyConstraint("scope", "number"),
    Index(None, "scope", "since"),
)

# Every state file that an agent ever counted in.
epochs = Table(
    "epochs",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("node_id", Integer, ForeignKey("nodes.id"), nullable=False),
    Column("epoch", Text, nullable=False),
    UniqueConstraint("node_id", "epoch"),
    sqlite_autoincrement=True,
)

# How far the totals of a node have been read.
cursors = Table(
    "cursors",
    metadata,
    Column("node_id", Integer, ForeignKey("nodes.id"), primary_key=True, autoincrement=False),
    Column("epoch", Text, nullable=False),
    Column("cursor", BigInteger, nullable=False),
)

# Accounts that a node had and has no more: deleted, or moved away. Their last bytes may still come from there.
former_accounts = Table(
    "former_accounts",
    metadata,
    Column("node_id", Integer, ForeignKey("nodes.id"), nullable=False),
    Column("account_id", BigInteger, nullable=False),
    PrimaryKeyConstraint("node_id", "account_id"),
    Index(None, "account_id"),
)

# Until when (milliseconds of the database's clock) work on a node is somebody's. See claims.py.
claims = Table(
    "claims",
    metadata,
    Column("work", Text, nullable=False),
    Column("node_id", Integer, nullable=False),  # 0 = the whole installation
    Column("until", BigInteger, nullable=False),
    Column("holder", Text, nullable=False),
    PrimaryKeyConstraint("work", "node_id"),
)

# No foreign key to accounts: a fold must not wait for, or stop, a delete. See usage.py.
usage = Table(
    "usage",
    metadata,
    Column("account_id", BigInteger, nullable=False),
    Column("day", Integer, nullable=False),
    Column("epoch_id", Integer, nullable=False),
    Column("download", BigInteger, nullable=False),
    Column("upload", BigInteger, nullable=False),
    PrimaryKeyConstraint("account_id", "day", "epoch_id"),
    Index(None, "day"),
)

# Whose usage it is, of accounts that are gone: as long as there is any of it.
deleted_accounts = Table(
    "deleted_accounts",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("name", Text, nullable=False, index=True),
    Column("server", Text, nullable=False),
    Column("deleted", BigInteger, nullable=False),
)

# What of the internet reaches an account: by a port of the node that its server is on.
port_forwards = Table(
    "port_forwards",
    metadata,
    Column("node_id", Integer, ForeignKey("nodes.id"), nullable=False),
    Column("protocol", Text, nullable=False),  # "tcp" or "udp"
    Column("port", Integer, nullable=False),
    Column("account_id", BigInteger, ForeignKey("accounts.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("to_port", Integer, nullable=False),
    PrimaryKeyConstraint("node_id", "protocol", "port"),
)

# The operator's rules for what accounts send and get, on every node. The lowest position comes first.
filter_rules = Table(
    "filter_rules",
    metadata,
    Column("name", Text, primary_key=True),
    Column("position", BigInteger, nullable=False, unique=True),
    Column("accepts", Boolean, nullable=False),
    Column("source", Text, nullable=False),  # "10.0.0.0/8"
    Column("destination", Text, nullable=False),
    Column("protocol", Text, nullable=False),  # "any", "tcp", "udp" or "icmp"
    Column("source_port", Integer, nullable=False),  # 0 = any
    Column("destination_port", Integer, nullable=False),
)

one_time_links = Table(
    "one_time_links",
    metadata,
    Column("digest", LargeBinary, primary_key=True),  # keyed: see one_time_links.py
    Column("account_id", BigInteger, ForeignKey("accounts.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("created", BigInteger, nullable=False),
    Column("expires", BigInteger, nullable=False, index=True),
    Column("used", BigInteger),
    Column("leased", BigInteger),  # until when; NULL = nobody opens it just now
    Column("proof", LargeBinary),  # that the gateway wrote this row
)

access_keys = Table(
    "access_keys",
    metadata,
    Column("name", Text, primary_key=True),
    Column("digest", LargeBinary, nullable=False, unique=True),  # keyed: see keys.py
    Column("networks", Text, nullable=False),  # CIDR, blank between
    Column("created", BigInteger, nullable=False),
)
