"""Methods of one file each, which the tests add to the program."""
