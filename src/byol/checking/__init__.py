"""`byol check`: are the images fit to train on?"""
