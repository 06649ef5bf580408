"""Tasks: real data sets by name, the user's own files, exact synthetic generators."""
