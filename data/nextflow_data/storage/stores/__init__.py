"""What kinds of store are there, and how is each spoken to?"""
