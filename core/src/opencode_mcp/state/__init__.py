"""What `opencode-connected` keeps on disk: who runs, one record for each instance of this user.

`connect` writes it; this room says where it is and reads it, for everybody. It also tells whose a port is.
"""
