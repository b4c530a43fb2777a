"""How is a WARC read: records, gzip members, what a record's body is."""
