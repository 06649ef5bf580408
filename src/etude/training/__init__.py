"""The training engine and methods that change how a net is trained."""
