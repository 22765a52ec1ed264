"""How the schema came to be, step by step. Steps that were released are never edited."""
