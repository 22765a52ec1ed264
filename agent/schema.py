"""What the agent's own file looks like, and the way there from each earlier version. Texts only; store.py runs them."""

from __future__ import annotations

SCHEMA_VERSION = 8

SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE servers (
    name TEXT PRIMARY KEY, interface TEXT NOT NULL, private_key TEXT NOT NULL, listen_port INTEGER NOT NULL,
    address TEXT NOT NULL, mtu INTEGER NOT NULL, internal_traffic INTEGER NOT NULL, external_ip TEXT,
    reach TEXT NOT NULL DEFAULT 'internet', address_ipv6 TEXT, nat_ipv6 INTEGER NOT NULL DEFAULT 0,
    ikev2 TEXT, filter TEXT
) WITHOUT ROWID;
CREATE TABLE accounts (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL, server TEXT NOT NULL, address INTEGER NOT NULL,
    public_key TEXT NOT NULL, mark INTEGER NOT NULL, download INTEGER NOT NULL, upload INTEGER NOT NULL,
    enabled INTEGER NOT NULL, preshared_key TEXT NOT NULL DEFAULT '', address_ipv6 BLOB,
    username TEXT, password TEXT, ports TEXT
);
-- how far the mark rules of an address have been counted, and for whom
CREATE TABLE baselines (
    address INTEGER PRIMARY KEY, owner INTEGER NOT NULL, download_packets INTEGER NOT NULL,
    download_bytes INTEGER NOT NULL, upload_packets INTEGER NOT NULL, upload_bytes INTEGER NOT NULL,
    since INTEGER NOT NULL DEFAULT 0 -- what the table of marks said of itself when the owner got the address
);
-- the same of addresses of IPv6, which are longer than an INTEGER
CREATE TABLE baselines_ipv6 (
    address BLOB PRIMARY KEY, owner INTEGER NOT NULL, download_packets INTEGER NOT NULL,
    download_bytes INTEGER NOT NULL, upload_packets INTEGER NOT NULL, upload_bytes INTEGER NOT NULL,
    since INTEGER NOT NULL
) WITHOUT ROWID;
-- totals that only grow; seq says in which sample a row changed last
CREATE TABLE usage (
    account_id INTEGER NOT NULL, day INTEGER NOT NULL, download INTEGER NOT NULL, upload INTEGER NOT NULL,
    seq INTEGER NOT NULL, PRIMARY KEY (account_id, day)
) WITHOUT ROWID;
CREATE INDEX usage_seq ON usage (seq);
CREATE INDEX usage_day ON usage (day);
"""

_IPV6 = SCHEMA[SCHEMA.index("CREATE TABLE baselines_ipv6") : SCHEMA.index("-- totals")]

# From each version to the next; what is there stays, but for the number by which the gateway knows what this node
# holds: a gateway of a later version may have told it what it had no column for, so it is told everything once more.
TOLD_AGAIN = "UPDATE meta SET value = '0' WHERE key IN ('revision', 'revision_mark');"
UPGRADES = {
    1: "ALTER TABLE servers ADD COLUMN reach TEXT NOT NULL DEFAULT 'internet';",
    2: "ALTER TABLE baselines ADD COLUMN since INTEGER NOT NULL DEFAULT 0;",
    3: "ALTER TABLE accounts ADD COLUMN preshared_key TEXT NOT NULL DEFAULT '';",
    4: f"""
        ALTER TABLE servers ADD COLUMN address_ipv6 TEXT;
        ALTER TABLE servers ADD COLUMN nat_ipv6 INTEGER NOT NULL DEFAULT 0;
        ALTER TABLE accounts ADD COLUMN address_ipv6 BLOB;
        {_IPV6}""",
    5: """
        ALTER TABLE servers ADD COLUMN ikev2 TEXT;
        ALTER TABLE accounts ADD COLUMN username TEXT;
        ALTER TABLE accounts ADD COLUMN password TEXT;""",
    6: "ALTER TABLE accounts ADD COLUMN ports TEXT;",
    7: "ALTER TABLE servers ADD COLUMN filter TEXT;",
}
