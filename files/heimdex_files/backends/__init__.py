"""Where the bytes are: a folder (local.py) or a bucket (s3.py). Both have the same layout, that of stored.py."""
