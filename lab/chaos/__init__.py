"""`lab local chaos`: runs that are disturbed at random, each compared with one that was left alone."""
