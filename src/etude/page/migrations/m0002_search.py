"""The full-text index: FTS5 on SQLite, weighted text search vectors on PostgreSQL."""

import sqlalchemy as sa

SQLITE = (
    "CREATE VIRTUAL TABLE fts USING fts5(title, tags, authors, abstract, "
    "tokenize = 'porter unicode61 remove_diacritics 2')",
    "CREATE VIRTUAL TABLE fts_title USING fts5(title, tokenize = 'trigram case_sensitive 0')",
)
POSTGRES = (
    "CREATE TABLE fts (rowid INTEGER PRIMARY KEY REFERENCES paper(id) ON DELETE CASCADE, "
    "title TEXT NOT NULL, tags TEXT NOT NULL, authors TEXT NOT NULL, abstract TEXT NOT NULL, "
    "document TSVECTOR NOT NULL)",
    "CREATE INDEX fts_document ON fts USING GIN (document)",
)


def up(connection: sa.Connection) -> None:
    for statement in SQLITE if connection.dialect.name == "sqlite" else POSTGRES:
        connection.exec_driver_sql(statement)


def down(connection: sa.Connection) -> None:
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("DROP TABLE fts_title")
    connection.exec_driver_sql("DROP TABLE fts")
