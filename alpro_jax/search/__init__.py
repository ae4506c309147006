"""Search of folders of videos by text, and questions about them.

cut.py      a worker process cuts a video into clips
store.py    the index: LanceDB tables; earlier.py converts one of an earlier version, in SQLite
indexing.py from folders to an index; only what is new is decoded
querying.py from a text to clips, from a question to answers
index.py    an index with its model, as Python sees it
gallery.py  what was found, as a page; exchange.py: for other programs
server.py   an index over HTTP, with a page to search and play; guard.py: who is answered
"""
