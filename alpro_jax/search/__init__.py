"""Search of a folder of videos by text, and questions about them.

cut.py      a worker process cuts a video into clips
store.py    the index: one SQLite file
indexing.py from a folder to an index; only what is new is decoded
querying.py from a text to clips, from a question to answers
index.py    an index with its model, as Python sees it
gallery.py  what was found, as a page
"""
