"""The host: interfaces, addresses, routes, connections and switches, whoever they belong to."""
