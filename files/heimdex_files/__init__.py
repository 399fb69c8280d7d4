"""Keeps the files of jobs: uploads, and what stages save. On a shared folder, or in S3.

Services open a `FileStore` (store.py) on the URL in HEIMDEX_FILES_URL. `names.py` builds the keys, `installation.py`
guards a store against a second installation, and `clean_up.py` removes what no job needs any more. This package imports
the contracts and nothing else of the project.
"""
