"""Files and model versions in places that a URL names: a directory, or a bucket of an object store.

**target** a place that a URL names · **found** one file in it, with its size and its tag · **tag** what changes when
the content does, opaque · **journal** what a promotion has copied already, so that the next one goes on there
"""
