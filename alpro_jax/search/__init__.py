"""Search of folders of videos by text.

store.py    the index: LanceDB tables; earlier.py converts one of an earlier version, in SQLite
indexing.py from folders to an index; only what is new is decoded
querying.py from a text to clips
index.py    an index with its model, as Python sees it
gallery.py  what was found, as a page; exchange.py: for other programs
server.py   an index over HTTP, with a page to search and play; guard.py: who is answered
"""
