"""Papers and claims: typed cards, one TOML file a paper."""
