"""Charts, bars and table lines as plain text with roles: pure functions that know no terminal and no toolkit."""
