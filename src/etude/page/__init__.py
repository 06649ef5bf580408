"""The front door: a self-hosted page of trending papers whose claims were measured again here.

It reads the catalogue and the ledger; to run a study it puts a job into the lab's queue.
"""
