"""Does a resumed run go on bit for bit?"""
