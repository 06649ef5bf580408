"""The page itself: FastAPI, Jinja2, htmx; it works without JavaScript."""
