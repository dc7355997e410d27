"""One door to everything that is read and written: folders, S3, tars, lists of URIs."""
