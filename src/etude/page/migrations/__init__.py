"""Numbered migrations of the page's tables; a file once released is never changed."""
