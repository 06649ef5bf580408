"""The e-mail digest: double opt-in, one-click out, never the same paper twice, nothing to say means no mail."""
