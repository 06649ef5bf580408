"""The page's tables. They live in the ledger's database; claims and runs are the catalogue's and the ledger's own.

Times are integers: seconds since 1970-01-01 UTC. Every change of a table is a numbered migration.
"""

import sqlalchemy as sa

from etude.page.heat import HALF_LIVES

meta = sa.MetaData()


def _id() -> sa.Column:
    return sa.Column("id", sa.Integer, primary_key=True, autoincrement=True)


def _to(table: str, *, nullable: bool = False, primary_key: bool = False, first: bool = False) -> sa.Column:
    """A foreign key; it needs an index of its own unless it comes first in the primary key."""
    key = sa.ForeignKey(f"{table}.id", ondelete="CASCADE")
    return sa.Column(f"{table}_id", key, nullable=nullable, primary_key=primary_key or first, index=not first)


_EDITED = sa.text("version > 1")
paper = sa.Table(
    "paper", meta, _id(),
    sa.Column("slug", sa.String(160), nullable=False, unique=True),
    sa.Column("title", sa.Text, nullable=False),
    sa.Column("abstract", sa.Text, nullable=False, default=""),
    sa.Column("authors", sa.JSON, nullable=False, default=list),  # [{"name": ...}]
    sa.Column("venue", sa.Text),
    sa.Column("room", sa.String(40), index=True),
    sa.Column("published_at", sa.BigInteger),  # of its first version, elsewhere
    sa.Column("published_inferred", sa.Boolean, nullable=False, default=False),
    sa.Column("submitted_at", sa.BigInteger, nullable=False, index=True),  # here
    sa.Column("submitted_by", sa.ForeignKey("account.id", ondelete="SET NULL")),
    sa.Column("source", sa.String(40), nullable=False),  # catalogue, saved-page, arxiv-atom, hf-daily, bibtex, form
    sa.Column("arxiv_id", sa.String(40), index=True),
    sa.Column("arxiv_version", sa.Integer),
    sa.Column("doi", sa.String(200), index=True),
    sa.Column("url", sa.Text),
    sa.Column("code_url", sa.Text),
    sa.Column("license", sa.Text),
    sa.Column("lang", sa.String(12)),
    sa.Column("extra", sa.JSON, nullable=False, default=dict),  # entry type, HF upvotes, code stars ...
    sa.Column("norm_hash", sa.String(64), nullable=False, index=True),
    sa.Column("heat_12", sa.Float, nullable=False),
    sa.Column("heat_72", sa.Float, nullable=False),
    sa.Column("heat_720", sa.Float, nullable=False),
    sa.Column("votes", sa.Integer, nullable=False, default=0),
    sa.Column("version", sa.Integer, nullable=False, default=1),  # of our row: a stale edit is refused
    sa.Column("hidden", sa.Boolean, nullable=False, default=False),
    sa.Column("pinned", sa.Boolean, nullable=False, default=False),
    sa.Column("updated_at", sa.BigInteger, nullable=False),
    *(sa.Index(f"ix_paper_by_{c}", sa.text(f"{c} DESC"), sa.text("submitted_at DESC"), "id") for c in HALF_LIVES),
    sa.Index("ix_paper_pinned", "pinned", sqlite_where=sa.text("pinned = 1"), postgresql_where=sa.text("pinned")),
    sa.Index("ix_paper_hidden", "hidden", sqlite_where=sa.text("hidden = 1"), postgresql_where=sa.text("hidden")),
    sa.Index("ix_paper_edited", "version", sqlite_where=_EDITED, postgresql_where=_EDITED),
)  # fmt: skip
paper_version = sa.Table(
    "paper_version", meta, _to("paper", first=True), sa.Column("n", sa.Integer, primary_key=True),
    sa.Column("record", sa.JSON, nullable=False), sa.Column("at", sa.BigInteger, nullable=False),
    sa.Column("by", sa.String(80), nullable=False),
)  # fmt: skip
alias = sa.Table(
    "alias", meta, sa.Column("kind", sa.String(20), primary_key=True),  # arxiv, doi, slug
    sa.Column("value", sa.String(200), primary_key=True), _to("paper"),
)  # fmt: skip
paper_tag = sa.Table(
    "paper_tag", meta, _to("paper", first=True), sa.Column("tag", sa.String(80), primary_key=True, index=True)
)
account = sa.Table(
    "account", meta, _id(),
    sa.Column("handle", sa.String(40), nullable=False, unique=True),
    sa.Column("email_hash", sa.String(64), unique=True),  # keyed hash; the address itself stands only in subscriber
    sa.Column("role", sa.String(20), nullable=False, default="member"),  # member, moderator, admin, banned
    sa.Column("for_you", sa.Boolean, nullable=False, default=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
)  # fmt: skip
login_token = sa.Table(
    "login_token", meta, sa.Column("token_hash", sa.String(64), primary_key=True),
    sa.Column("email_hash", sa.String(64), nullable=False), sa.Column("expires_at", sa.BigInteger, nullable=False),
    sa.Column("used", sa.Boolean, nullable=False, default=False),
)  # fmt: skip
session = sa.Table(
    "session", meta, sa.Column("token_hash", sa.String(64), primary_key=True), _to("account"),
    sa.Column("csrf", sa.String(64), nullable=False), sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("expires_at", sa.BigInteger, nullable=False),
    sa.Column("previous_hash", sa.String(64), index=True), sa.Column("rotated_at", sa.BigInteger),
)  # fmt: skip
api_token = sa.Table(
    "api_token", meta, sa.Column("token_hash", sa.String(64), primary_key=True), _to("account"),
    sa.Column("name", sa.String(80), nullable=False), sa.Column("created_at", sa.BigInteger, nullable=False),
)  # fmt: skip
vote = sa.Table(
    "vote", meta, _to("paper", first=True), _to("account", primary_key=True),
    sa.Column("at", sa.BigInteger, nullable=False, index=True), sa.Column("weight", sa.Float, nullable=False),
)  # fmt: skip
event = sa.Table(  # what heat is made of; nothing is ever subtracted, a vote taken back removes its event
    "event", meta, _id(), _to("paper"), _to("account", nullable=True),
    sa.Column("kind", sa.String(20), nullable=False),  # new, vote, save, note, study, verdict, stars
    sa.Column("weight", sa.Float, nullable=False), sa.Column("at", sa.BigInteger, nullable=False),
    sa.Column("key", sa.String(120), unique=True),  # once only: "vote:3:7", "note:3:7:2026-11-22"
    sa.Column("network", sa.String(64)),
)  # fmt: skip
library = sa.Table(
    "library", meta, _to("paper", first=True), _to("account", primary_key=True),
    sa.Column("tags", sa.JSON, nullable=False, default=list), sa.Column("note", sa.Text, nullable=False, default=""),
    sa.Column("read", sa.Boolean, nullable=False, default=False), sa.Column("at", sa.BigInteger, nullable=False),
)  # fmt: skip
dismissal = sa.Table(
    "dismissal", meta, _to("paper", first=True), _to("account", primary_key=True),
    sa.Column("at", sa.BigInteger, nullable=False),
)  # fmt: skip
saved_search = sa.Table(
    "saved_search", meta, _id(), _to("account"), sa.Column("name", sa.String(120), nullable=False),
    sa.Column("query", sa.Text, nullable=False), sa.Column("at", sa.BigInteger, nullable=False),
)  # fmt: skip
note = sa.Table(
    "note", meta, _id(), _to("paper"), _to("account"), sa.Column("claim", sa.String(40)),
    sa.Column("text", sa.Text, nullable=False), sa.Column("at", sa.BigInteger, nullable=False),
    sa.Column("state", sa.String(20), nullable=False, default="pending"),  # pending, shown, hidden
    sa.Column("kind", sa.String(12), nullable=False, default="note", server_default="note"),  # note, dispute
)  # fmt: skip
follow = sa.Table(
    "follow", meta, _to("account", first=True), sa.Column("kind", sa.String(12), primary_key=True),  # author, room, tag
    sa.Column("value", sa.String(120), primary_key=True), sa.Column("at", sa.BigInteger, nullable=False),
)  # fmt: skip
authorship = sa.Table(  # who says to have written a paper, how it was proved, and what a moderator said
    "authorship", meta, _id(), _to("paper"), _to("account"),
    sa.Column("state", sa.String(12), nullable=False),  # pending, verified, refused
    sa.Column("proof", sa.Text, nullable=False, default=""),
    sa.Column("token_hash", sa.String(64)), sa.Column("expires_at", sa.BigInteger),  # of a link sent by mail
    sa.Column("at", sa.BigInteger, nullable=False), sa.UniqueConstraint("paper_id", "account_id"),
)  # fmt: skip
audit = sa.Table(  # lines are only added, and follow a change of handle: roles, moderation, pins, edits
    "audit", meta, _id(), sa.Column("at", sa.BigInteger, nullable=False),
    sa.Column("by", sa.String(80), nullable=False),
    sa.Column("what", sa.String(40), nullable=False), sa.Column("record", sa.JSON, nullable=False),
)  # fmt: skip
verdict_log = sa.Table(  # append-only: one row whenever a claim's newest verdict differs from the one before
    "verdict_log", meta, _id(), sa.Column("slug", sa.String(80), nullable=False, index=True),
    sa.Column("claim", sa.String(40), nullable=False), sa.Column("protocol", sa.String(80), nullable=False),
    sa.Column("tier", sa.String(16), nullable=False), sa.Column("verdict", sa.String(20)),
    sa.Column("record", sa.JSON, nullable=False), sa.Column("run", sa.String(32), nullable=False),
    sa.Column("at", sa.BigInteger, nullable=False, index=True),
)  # fmt: skip
subscriber = sa.Table(
    "subscriber", meta, _id(), sa.Column("email", sa.String(254), nullable=False, unique=True),
    sa.Column("status", sa.String(20), nullable=False),  # pending, active, paused, unsubscribed, bounced
    sa.Column("frequency", sa.String(12), nullable=False),  # weekdays, weekly, monthly
    sa.Column("zone", sa.String(60), nullable=False), sa.Column("hour", sa.Integer, nullable=False),
    sa.Column("filters", sa.JSON, nullable=False, default=dict),
    sa.Column("account_id", sa.ForeignKey("account.id", ondelete="SET NULL")),
    sa.Column("confirm_hash", sa.String(64)), sa.Column("confirm_expires_at", sa.BigInteger),
    sa.Column("next_at", sa.BigInteger, index=True), sa.Column("soft_failures", sa.Integer, nullable=False, default=0),
    sa.Column("created_at", sa.BigInteger, nullable=False), sa.Column("confirmed_at", sa.BigInteger),
    sa.Column("network", sa.String(64)),
    sa.Column("language", sa.String(8), nullable=False, default="en", server_default="en"),  # of what mails say around
    sa.Column("wish", sa.JSON(none_as_null=True)),  # what somebody paused asked for, until it is confirmed
)  # fmt: skip
sent = sa.Table(
    "sent", meta, _to("subscriber", first=True), sa.Column("period", sa.String(40), primary_key=True),
    sa.Column("at", sa.BigInteger, nullable=False),
)  # fmt: skip
sent_item = sa.Table(
    "sent_item", meta, _to("subscriber", first=True), _to("paper", primary_key=True),
)  # fmt: skip
outbox = sa.Table(
    "outbox", meta, _id(), sa.Column("recipient", sa.String(254), nullable=False),
    sa.Column("subject", sa.Text, nullable=False), sa.Column("raw", sa.Text, nullable=False),
    sa.Column("key", sa.String(120), unique=True), sa.Column("subscriber_id", sa.Integer),
    sa.Column("status", sa.String(20), nullable=False),  # queued, sending, sent, failed, bounced
    sa.Column("tries", sa.Integer, nullable=False, default=0), sa.Column("next_at", sa.BigInteger, nullable=False),
    sa.Column("lease_until", sa.BigInteger), sa.Column("error", sa.Text),
    sa.Column("created_at", sa.BigInteger, nullable=False),
)  # fmt: skip
rate = sa.Table(  # sliding windows of the rate limits; old rows are purged
    "rate", meta, _id(), sa.Column("key", sa.String(120), nullable=False, index=True),
    sa.Column("at", sa.BigInteger, nullable=False, index=True),
)  # fmt: skip
vector = sa.Table(  # embeddings wait here for the index
    "vector", meta, _to("paper", primary_key=True), sa.Column("model", sa.String(60), nullable=False),
    sa.Column("digest", sa.String(64), nullable=False), sa.Column("f16", sa.LargeBinary),
    sa.Column("version", sa.Integer, nullable=False, server_default="1"),  # of the paper whose text it is of
    sa.Column("n", sa.BigInteger, nullable=False, server_default="0", index=True),  # counts the writings
)  # fmt: skip
pending_import = sa.Table(  # a preview that waits for its confirmation, purged after a day
    "pending_import", meta, sa.Column("token_hash", sa.String(64), primary_key=True),
    sa.Column("format", sa.String(20), nullable=False), sa.Column("text", sa.Text, nullable=False),
    sa.Column("at", sa.BigInteger, nullable=False),
)  # fmt: skip
enriched = sa.Table(  # answers of other hosts about a paper, asked for again after a week
    "enriched", meta, _to("paper", first=True), sa.Column("source", sa.String(20), primary_key=True),
    sa.Column("record", sa.JSON, nullable=False), sa.Column("at", sa.BigInteger, nullable=False),
)  # fmt: skip
