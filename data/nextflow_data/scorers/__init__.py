"""How good is it: one scorer in one file, asked in this process, in a pool of processes, or on a server.

Learned scores, edit checks, rewards and judges are all asked the same way (`scoring.Scoring`), and a file that works one way
works all three. `loading` says what a scorer's file looks like, `protocol` what goes to and fro, also for servers in other
languages.
"""
